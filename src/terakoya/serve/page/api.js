// Talking to the server: OpenAI's own routes, nothing else.
const headers = () => {
  const key = sessionStorage.getItem("key");
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
};

export class Refused extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

async function checked(response) {
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new Refused(response.status, body?.error?.message ?? `${response.status}`);
}

export async function models() {
  const response = await checked(await fetch("/v1/models", { headers: headers() }));
  return (await response.json()).data;
}

export async function post(path, body, signal) {
  const response = await checked(await fetch(path, { method: "POST", headers: headers(), body: JSON.stringify(body), signal }));
  return response.json();
}

// Yield the objects of a stream of events, as they come.
export async function* stream(path, body, signal) {
  const asked = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await checked(await fetch(path, { method: "POST", headers: headers(), body: JSON.stringify(asked), signal }));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ")) continue;
      const data = event.slice(6);
      if (data === "[DONE]") return;
      const found = JSON.parse(data);
      if (found.error) throw new Refused(500, found.error.message);
      yield found;
    }
  }
}
