// Requests to the server, and the server-sent events of its streams.

const ROOT = new URL("../", document.baseURI);
const STORAGE_KEY = "api-key";

// A failed request. `kind` is one of network, key, busy, unavailable, refused, broken; `message` comes from the server.
export class RequestError extends Error {
  constructor(kind, message = "", { code = null, retryAfter = null } = {}) {
    super(message);
    this.kind = kind;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

export const apiKey = {
  get: () => sessionStorage.getItem(STORAGE_KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(STORAGE_KEY, value) : sessionStorage.removeItem(STORAGE_KEY)),
};

export const url = (path) => new URL(path, ROOT).href;

export async function listModels() {
  return (await request("v1/models")).json();
}

// Returns null if the server can read pages, otherwise the reason why it can't.
export async function unavailableReason() {
  try {
    const health = await (await fetch(url("health"))).json();
    return health.status === "ok" ? null : health.reason;
  } catch {
    throw new RequestError("network");
  }
}

export async function post(path, body, signal) {
  return request(path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
}

// Yields the chunks of a streamed chat completion. Throws a RequestError if the stream contains an error event.
export async function* streamChat(body, signal) {
  const response = await post("v1/chat/completions", body, signal);
  let ended = false;
  for await (const data of serverSentEvents(response.body)) {
    if (data === "[DONE]") {
      ended = true;
      break;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw errorOf(500, chunk.error);
    yield chunk;
  }
  if (!ended) throw new RequestError("network");
}

async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (apiKey.get()) headers.authorization = `Bearer ${apiKey.get()}`;
  let response;
  try {
    response = await fetch(url(path), { ...options, headers });
  } catch (error) {
    throw error.name === "AbortError" ? error : new RequestError("network");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw errorOf(response.status, body.error ?? {}, response.headers.get("retry-after"));
}

function errorOf(status, { message, code }, retryAfter = null) {
  const kind = { 401: "key", 429: "busy", 503: "unavailable" }[status] ?? (status < 500 ? "refused" : "broken");
  return new RequestError(code === "engine_unavailable" ? "unavailable" : kind, message, { code, retryAfter });
}

// Yields the data of server-sent events as this server sends them: one `data:` line per event. Comments are skipped.
async function* serverSentEvents(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error) => {
        throw error.name === "AbortError" ? error : new RequestError("network");
      });
      if (done) return;
      const lines = (pending + value).split("\n");
      pending = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data: ")) yield line.slice(6);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
