// The server: requests with the API key, which is kept until the tab is closed, and streams of events.

let key = null;
export const apiKey = {
  // A browser that keeps nothing may refuse even to be asked.
  get: () => { try { return sessionStorage.getItem("key"); } catch { return key; } },
  set: (value) => { try { sessionStorage.setItem("key", value); } catch { key = value; } },
};

export async function ask(path, options = {}) {
  const key = apiKey.get();
  const headers = { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
  const response = await fetch(path, { ...options, headers }).catch((error) => {
    // A browser's own words for it tell a person nothing; being stopped is no failure.
    throw options.signal?.aborted ? error : new Error("the server does not answer");
  });
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  const error = new Error(body.error?.message ?? body.error ?? body.reason ?? `the server answered ${response.status}`);
  error.status = response.status;
  throw error;
}

/** Objects of a stream of server-sent events; throws where it ends without `[DONE]`. */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the answer broke off");
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      // What a proxy adds to keep a connection open is a comment.
      if (!part.startsWith("data: ")) continue;
      const data = part.slice("data: ".length);
      if (data === "[DONE]") return;
      const object = JSON.parse(data);
      if (object.error) throw new Error(object.error.message);
      yield object;
    }
  }
}
