// The service, as the page sees it.

const TOKEN = "zsad-token";

/** What the service says no with. */
export class Refused extends Error {
  constructor(status, code, detail, wait) {
    super(detail);
    Object.assign(this, { status, code, wait });
  }
}

const headers = () => {
  const token = sessionStorage.getItem(TOKEN);
  return token ? { authorization: `Bearer ${token}` } : {};
};

/** Keeps the token until the tab is closed. */
export const keepToken = (token) => sessionStorage.setItem(TOKEN, token);

function refusal(status, text, wait) {
  try {
    const problem = JSON.parse(text);
    return new Refused(status, problem.code ?? "refused", problem.detail ?? `status ${status}`, wait);
  } catch {
    return new Refused(status, "refused", `the service answered with status ${status}`, wait);
  }
}

const UNREACHABLE = "the service cannot be reached; is it still running?";

/** Asks, and returns the parsed answer, or null for an empty one. */
export async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "unreachable", UNREACHABLE, 0);
  }
  if (!answer.ok) throw refusal(answer.status, await answer.text(), Number(answer.headers.get("retry-after") ?? 1));
  return answer.status === 204 ? null : answer.json();
}

const sleep = (seconds, signal) => new Promise((done, fail) => {
  const timer = setTimeout(done, 1000 * seconds);
  signal?.addEventListener("abort", () => { clearTimeout(timer); fail(signal.reason); }, { once: true });
});

/** The answer for one image; where the service is busy, tries again when it says so. */
export async function predict(file, { include, signal }) {
  const query = new URLSearchParams(include.map((part) => ["include", part]));
  for (;;) {
    const body = new FormData();
    body.append("image", file, file.name);
    try {
      return await ask(`/v1/predict?${query}`, { method: "POST", body, signal });
    } catch (error) {
      if (!(error instanceof Refused) || ![429, 503].includes(error.status)) throw error;
      await sleep(error.wait || 1, signal);
    }
  }
}

/** Calibrates on normal images; `progress` is told the share that has been taken. */
export function calibrate(files, { rate, progress, signal }) {
  return new Promise((done, fail) => {
    const request = new XMLHttpRequest(); // fetch does not tell how much has been sent
    request.open("POST", `/v1/calibrate?${new URLSearchParams({ target_fpr: rate })}`);
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.upload.addEventListener("progress", (event) => progress(event.loaded / event.total));
    request.addEventListener("load", () => {
      if (request.status === 200) done(JSON.parse(request.responseText));
      else fail(refusal(request.status, request.responseText, 1));
    });
    request.addEventListener("error", () => fail(new Refused(0, "unreachable", UNREACHABLE, 0)));
    request.addEventListener("abort", () => fail(new DOMException("stopped", "AbortError")));
    signal.addEventListener("abort", () => request.abort(), { once: true });
    const body = new FormData();
    for (const file of files) body.append("images", file, file.name);
    request.send(body);
  });
}
