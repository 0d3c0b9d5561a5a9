// The page: a conversation with the model that the worker runs.
const at = (id) => document.getElementById(id);
const worker = new Worker("/page/worker.js", { type: "module" });
const waiting = {};
const hear = { text: () => {}, progress: () => {} };

worker.onmessage = ({ data }) => {
  if (data.kind === "text") hear.text(data.text);
  else if (data.kind === "progress") hear.progress(data.part);
  else {
    const { resolve, reject } = waiting[data.of];
    data.kind === "done" ? resolve(data.value) : reject(new Error(data.error));
  }
};
worker.onerror = (event) => { for (const { reject } of Object.values(waiting)) reject(new Error(event.message || "the worker did not start")); };

const ask = (kind, given = {}) => new Promise((resolve, reject) => {
  waiting[kind] = { resolve, reject };
  worker.postMessage({ kind, ...given });
});

let messages = [], busy = false;

function line(role, text) {
  const place = document.createElement("div");
  place.className = role;
  place.textContent = text;
  at("talk").append(place);
  place.scrollIntoView({ block: "end" });
  return place;
}

function work(on) {
  busy = on;
  at("send").textContent = on ? "Stop" : "Send";
}

async function say(text) {
  messages.push({ role: "user", content: text });
  line("user", text);
  const place = line("assistant", "");
  hear.text = (piece) => { place.textContent += piece; place.scrollIntoView({ block: "end" }); };
  work(true);
  try {
    const made = await ask("answer", { messages, limit: 512, temperature: Number(at("temperature").value) });
    messages.push({ role: "assistant", content: made.text });
    at("said").textContent = `${made.tokens.length} tokens, ${made.rate.toFixed(1)} tokens/s, the first after ${made.first.toFixed(1)} s`;
    return made;
  } catch (error) {
    messages.pop();
    line("error", error.message);
  } finally {
    work(false);
  }
}

at("form").onsubmit = (event) => {
  event.preventDefault();
  if (busy) { worker.postMessage({ kind: "stop" }); return; }
  const text = at("text").value.trim();
  if (!text) return;
  at("text").value = "";
  say(text);
};
at("text").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); at("form").requestSubmit(); }
};
at("again").onclick = () => { if (!busy) { messages = []; at("talk").textContent = ""; at("said").textContent = ""; } };

(async () => {
  const begin = performance.now();
  try {
    const settings = await (await fetch("/page/settings.json")).json();
    at("name").textContent = settings.model;
    document.title = settings.model;
    hear.progress = (part) => { at("bar").value = part; at("state").textContent = part < 1 ? `loading ${Math.round(100 * part)} %` : "preparing"; };
    const loaded = await ask("load", settings);
    const seconds = (performance.now() - begin) / 1000;
    at("state").textContent = `ready after ${seconds.toFixed(1)} s, ${loaded.threads} ${loaded.threads === 1 ? "thread" : "threads"}${loaded.expanded ? "" : "; too large to be expanded: slow"}`;
    at("bar").remove();
    if (!loaded.chat) throw new Error("this model has no chat template");
    at("send").disabled = false;
    document.documentElement.dataset.ready = seconds;
  } catch (error) {
    at("state").textContent = "";
    line("error", error.message);
    document.documentElement.dataset.failed = error.message;
  }
})();

window.pocketphi = { ask, say };
