// The request that was made, as something to run: the file by its name in place of its base64.

const MARK = "FILE-AS-BASE64";

// For a shell: reads the file, and the key from $OPENAI_API_KEY if there is one.
export function curl(body, file, url, withKey) {
  const [before, after] = JSON.stringify(unfilled(body)).split(MARK);
  return [
    `{ printf %s ${quoted(before)}; base64 < ${quoted(file)} | tr -d '\\n'; printf %s ${quoted(after)}; } |`,
    `curl -sN ${quoted(url)} \\`,
    ...(withKey ? ['  -H "Authorization: Bearer $OPENAI_API_KEY" \\'] : []),
    "  -H 'Content-Type: application/json' --data-binary @-",
  ].join("\n");
}

// For the official SDK.
export function python(body, file, baseUrl, withKey) {
  const { ocr, ...parameters } = unfilled(body);
  const given = Object.entries(parameters).map(([name, value]) => `    ${name}=${literal(value, 4)},`);
  if (ocr) given.push(`    extra_body=${literal({ ocr }, 4)},`);
  const code = given.join("\n").replace(new RegExp(`"([^"]*)${MARK}"`), (_, head) => `"${head}" + data`);
  return [
    "import base64",
    ...(withKey ? ["import os"] : []),
    "",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${literal(baseUrl)}, api_key=${withKey ? 'os.environ["OPENAI_API_KEY"]' : '"EMPTY"'})`,
    "",
    `with open(${literal(file)}, "rb") as file:`,
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

function unfilled(body) {
  const fill = (uri) => uri.replace(/;base64,[^]*$/, `;base64,${MARK}`);
  const [message] = body.messages;
  const content = message.content.map((part) => {
    if (part.type === "file") return { ...part, file: { ...part.file, file_data: fill(part.file.file_data) } };
    if (part.type === "image_url") return { ...part, image_url: { url: fill(part.image_url.url) } };
    return part;
  });
  return { ...body, messages: [{ ...message, content }] };
}

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

// JSON's strings and numbers are Python's too.
function literal(value, indent = 0) {
  const pad = " ".repeat(indent);
  const list = (open, items, close) =>
    items.length ? `${open}\n${items.map((item) => `${pad}    ${item},`).join("\n")}\n${pad}${close}` : open + close;
  if (Array.isArray(value)) return list("[", value.map((each) => literal(each, indent + 4)), "]");
  if (value === true) return "True";
  if (value === false) return "False";
  if (value === null) return "None";
  if (typeof value === "object") {
    const items = Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${literal(each, indent + 4)}`);
    return list("{", items, "}");
  }
  return JSON.stringify(value);
}
