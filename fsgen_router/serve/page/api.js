// The server: its model names, and a chat completion as a stream of events.

let key = ""; // in memory alone

export function useKey(given) {
  key = given.trim();
}

/** What the server, or the way to it, says no with: in words. */
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.authorization = `Bearer ${key}`;
  let reply;
  try {
    reply = await fetch(path, { ...options, headers, credentials: "omit", cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server cannot be reached. Is it still running?");
  }
  if (!reply.ok) throw new Refused(await words(reply), reply.status);
  return reply;
}

async function words(reply) {
  const told = await reply.json().then((body) => body.error?.message, () => undefined);
  const again = reply.headers.get("retry-after");
  const what = told ?? `The server answered with status ${reply.status}.`;
  return again ? `${what} Try again in ${again} seconds.` : what;
}

export async function models() {
  return (await (await request("/v1/models")).json()).data;
}

/** Events of a streamed chat completion. Breaks with Refused, or an AbortError where `signal` ends it. */
export async function* chat(body, signal) {
  const headers = { "content-type": "application/json" };
  const reply = await request("/v1/chat/completions", { method: "POST", headers, body: JSON.stringify(body), signal });
  let done = false;
  for await (const data of events(reply.body)) {
    done ||= data === "[DONE]";
    if (done) continue; // to the end, so that nothing looks as if this client had left
    const event = JSON.parse(data);
    if (event.error) throw new Refused(event.error.message);
    yield event;
  }
  if (!done) throw new Refused("The connection broke before the answer was finished.");
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      buffer += value;
      const lines = buffer.split("\n");
      buffer = lines.pop();
      for (const line of lines) if (line.startsWith("data: ")) yield line.slice(6);
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The connection broke before the answer was finished.");
  } finally {
    reader.cancel().catch(() => {});
  }
}
