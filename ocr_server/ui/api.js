// Requests to the server, and the events of its streams.

const ROOT = new URL("../", document.baseURI);
const KEY = "api-key";

// What went wrong: `kind` is one of network, key, busy, unavailable, refused, broken; `message` is the server's own.
export class Failure extends Error {
  constructor(kind, message = "", { code = null, retryAfter = null } = {}) {
    super(message);
    this.kind = kind;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

export const url = (path) => new URL(path, ROOT).href;

export async function models() {
  return (await answer("v1/models")).json();
}

// Null when pages can be read, else why not.
export async function unavailable() {
  try {
    const health = await (await fetch(url("health"))).json();
    return health.status === "ok" ? null : health.reason;
  } catch {
    throw new Failure("network");
  }
}

export async function post(path, body, signal) {
  return answer(path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
}

// The chunks of a chat completion as they come. An error event is thrown.
export async function* chunks(body, signal) {
  const response = await post("v1/chat/completions", body, signal);
  let ended = false;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") {
      ended = true;
      break;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw failure(500, chunk.error);
    yield chunk;
  }
  if (!ended) throw new Failure("network");
}

async function answer(path, options = {}) {
  const headers = { ...options.headers };
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  let response;
  try {
    response = await fetch(url(path), { ...options, headers });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Failure("network");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw failure(response.status, body.error ?? {}, response.headers.get("retry-after"));
}

function failure(status, { message, code }, retryAfter = null) {
  const kind = { 401: "key", 429: "busy", 503: "unavailable" }[status] ?? (status < 500 ? "refused" : "broken");
  return new Failure(code === "engine_unavailable" ? "unavailable" : kind, message, { code, retryAfter });
}

// The data of server-sent events, as this server frames them: one line each, a blank one between, comments between.
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error) => {
        throw error.name === "AbortError" ? error : new Failure("network");
      });
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data: ")) yield line.slice(6);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
