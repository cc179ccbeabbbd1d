// The page's requests: a session of this tab, JSON there and back, and answers that come in lines.
// Paths are relative to the page's own address, because a proxy may have given it a folder.

import { recall, retain } from "./memory.js";

const SESSION = "session";
const SHOWN = "shown";  // whether a page of this tab has begun and not said farewell
let session = recall(SESSION);
const tabs = "BroadcastChannel" in window ? new BroadcastChannel("region-chat") : null;

/** Whether another tab has this session: a tab that is duplicated hands all that it remembers to its copy. */
function isElsewhere() {
  return new Promise((done) => {
    if (!tabs) return done(false);
    tabs.onmessage = ({ data }) => { if (data.has === session) done(true); };
    tabs.postMessage({ asks: session });
    setTimeout(() => done(false), 500);  // nobody: the browser had ended this tab, and has brought it back
  });
}

/** Whether this tab was copied from one that is still there; it has a session of its own. */
export const isCopy = Boolean(session && recall(SHOWN)) && (await isElsewhere());
if (!session || isCopy) {
  session = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  retain(SESSION, session);
}
retain(SHOWN, "yes");
if (tabs) tabs.onmessage = ({ data }) => { if (data.asks === session) tabs.postMessage({ has: session }); };

/** What a lost connection is called, instead of the browser's own words. */
function lost() { throw new Error("The page's server does not answer: is it still running?"); }

async function send(path, data) {
  const answer = await fetch(path, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ session, ...data }),
  }).catch(lost);
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  const refusal = new Error(said.error || said.detail || "The server refused that: reload the page.");
  refusal.status = answer.status;
  throw refusal;
}

/** What the server answers to a request; an `Error` with its words if it refuses. */
export async function call(path, data = {}) { return (await send(path, data)).json().catch(lost); }

/** The same for a file. */
export async function download(path, data) { return (await send(path, data)).blob().catch(lost); }

/** The steps of an answer, as they come. */
export async function* steps(path, data) {
  const reader = (await send(path, data)).body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch(lost);
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line) yield JSON.parse(line);
  }
}

/** Tell the server that this tab goes away, which no page can wait for. */
export function leave() {
  retain(SHOWN, "");
  navigator.sendBeacon("leave", new Blob([JSON.stringify({ session })], { type: "application/json" }));
}
