// The current request as code to run. It reads the file by name instead of containing its base64 data.

const PLACEHOLDER = "FILE-AS-BASE64";

// A shell command with curl. If a key is needed, it is read from $OPENAI_API_KEY.
export function curl(body, file, url, withKey) {
  const [before, after] = JSON.stringify(withPlaceholder(body)).split(PLACEHOLDER);
  return [
    `{ printf %s ${shellQuote(before)}; base64 < ${shellQuote(file)} | tr -d '\\n'; printf %s ${shellQuote(after)}; } |`,
    `curl -sN ${shellQuote(url)} \\`,
    ...(withKey ? ['  -H "Authorization: Bearer $OPENAI_API_KEY" \\'] : []),
    "  -H 'Content-Type: application/json' --data-binary @-",
  ].join("\n");
}

// A Python program that uses the official SDK.
export function python(body, file, baseUrl, withKey) {
  const { ocr, ...parameters } = withPlaceholder(body);
  const args = Object.entries(parameters).map(([name, value]) => `    ${name}=${pythonLiteral(value, 4)},`);
  if (ocr) args.push(`    extra_body=${pythonLiteral({ ocr }, 4)},`);
  const code = args.join("\n").replace(new RegExp(`"([^"]*)${PLACEHOLDER}"`), (_, head) => `"${head}" + data`);
  return [
    "import base64",
    ...(withKey ? ["import os"] : []),
    "",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${pythonLiteral(baseUrl)}, api_key=${withKey ? 'os.environ["OPENAI_API_KEY"]' : '"EMPTY"'})`,
    "",
    `with open(${pythonLiteral(file)}, "rb") as file:`,
    "    data = base64.b64encode(file.read()).decode()",
    "",
    "stream = client.chat.completions.create(",
    code,
    ")",
    "for chunk in stream:",
    "    for choice in chunk.choices:",
    '        print(choice.delta.content or "", end="", flush=True)',
    "print()",
    "",
  ].join("\n");
}

function withPlaceholder(body) {
  const replaceData = (uri) => uri.replace(/;base64,[^]*$/, `;base64,${PLACEHOLDER}`);
  const [message] = body.messages;
  const content = message.content.map((part) => {
    if (part.type === "file") return { ...part, file: { ...part.file, file_data: replaceData(part.file.file_data) } };
    if (part.type === "image_url") return { ...part, image_url: { url: replaceData(part.image_url.url) } };
    return part;
  });
  return { ...body, messages: [{ ...message, content }] };
}

function shellQuote(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

// A JSON value as a Python literal. JSON's strings and numbers are valid Python.
function pythonLiteral(value, indent = 0) {
  const pad = " ".repeat(indent);
  const list = (open, items, close) =>
    items.length ? `${open}\n${items.map((item) => `${pad}    ${item},`).join("\n")}\n${pad}${close}` : open + close;
  if (Array.isArray(value)) return list("[", value.map((each) => pythonLiteral(each, indent + 4)), "]");
  if (value === true) return "True";
  if (value === false) return "False";
  if (value === null) return "None";
  if (typeof value === "object") {
    const items = Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${pythonLiteral(each, indent + 4)}`);
    return list("{", items, "}");
  }
  return JSON.stringify(value);
}
