// Runs a bundle's own model.onnx with onnxruntime-web: tokenizer, template, prefill in chunks, greedy or random decode.
import * as ort from "/library/ort.mjs";
import { Tokenizer } from "/library/tokenizers.mjs";
import { Template } from "/library/jinja.mjs";
import { expand } from "/page/expand.js";

let model, stopped = false;

const TYPES = { float32: Float32Array, int8: Int8Array, uint8: Uint8Array };

async function bytes(name, progress) {
  const answer = await fetch(`/bundle/${name}`);
  if (!answer.ok) throw new Error(`${name}: ${answer.status}`);
  const whole = Number(answer.headers.get("content-length"));
  const held = new Uint8Array(whole);
  const reader = answer.body.getReader();
  let at = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    held.set(value, at);
    at += value.length;
    progress(value.length, whole);
  }
  if (at !== whole) throw new Error(`${name}: ${at} of ${whole} bytes came`);
  return held;
}

const json = async (name) => JSON.parse(new TextDecoder().decode(await bytes(name, () => {})));
const text = async (name) => new TextDecoder().decode(await bytes(name, () => {}));

/** The files of the bundle, and a session with an empty cache. */
async function load(settings) {
  ort.env.wasm.wasmPaths = "/library/";
  ort.env.wasm.numThreads = self.crossOriginIsolated ? settings.threads || Math.min(navigator.hardwareConcurrency || 1, 4) : 1;
  let came = 0;
  const sizes = settings.files["model.onnx"] + settings.files["model.onnx.data"];
  const progress = (more) => { came += more; postMessage({ kind: "progress", part: came / sizes }); };
  const [graph, data] = await Promise.all([bytes("model.onnx", progress), bytes("model.onnx.data", progress)]);
  const config = "tokenizer_config.json" in settings.files ? await json("tokenizer_config.json") : {};
  const tokenizer = new Tokenizer(await json("tokenizer.json"), config);
  const source = "chat_template.jinja" in settings.files ? await text("chat_template.jinja") : config.chat_template;
  const begin = performance.now();
  const made = expand(graph, data, settings.most);
  const session = await ort.InferenceSession.create(made?.graph ?? graph, {
    executionProviders: ["wasm"],
    externalData: [{ path: "model.onnx.data", data }, ...(made?.files ?? [])],
    logSeverityLevel: 3,
  });
  const named = (key) => (typeof config[key] === "string" ? config[key] : config[key]?.content ?? "");
  model = {
    ...settings, tokenizer, session, config,
    template: typeof source === "string" ? new Template(source) : null,
    words: { bos_token: named("bos_token"), eos_token: named("eos_token"), pad_token: named("pad_token"), unk_token: named("unk_token") },
    seen: [], cache: null,
  };
  return { threads: ort.env.wasm.numThreads, expanded: made?.bytes ?? 0, seconds: (performance.now() - begin) / 1000, chat: model.template !== null };
}

function empty() {
  const cache = {};
  for (const input of model.session.inputMetadata) {
    if (!input.name.startsWith("past_key_values.")) continue;
    const [, heads, , width] = input.shape;
    cache[input.name] = new ort.Tensor(input.type, new TYPES[input.type](0), [1, heads, 0, width]);
  }
  return cache;
}

/** Appends tokens to the cache; the logits of the last one. */
async function step(tokens) {
  const past = model.seen.length, total = past + tokens.length;
  const feeds = { ...model.cache, input_ids: new ort.Tensor("int64", BigInt64Array.from(tokens, BigInt), [1, tokens.length]) };
  if (model.session.inputNames.includes("attention_mask")) {
    feeds.attention_mask = new ort.Tensor("int64", new BigInt64Array(total).fill(1n), [1, total]);
  }
  if (model.session.inputNames.includes("position_ids")) {
    feeds.position_ids = new ort.Tensor("int64", BigInt64Array.from(tokens, (_, i) => BigInt(past + i)), [1, tokens.length]);
  }
  const results = await model.session.run(feeds);
  const next = {};
  for (const name of Object.keys(model.cache)) next[name] = results[name.replace("past_key_values", "present")];
  model.cache = next;
  model.seen.push(...tokens);
  const logits = results.logits.data;
  return logits.subarray(logits.length - model.vocabulary);
}

/** Brings the cache to `tokens`: only what is new, unless the start differs. */
async function read(tokens) {
  const held = model.seen.length;
  if (!model.cache || held >= tokens.length || model.seen.some((token, i) => token !== tokens[i])) {
    model.seen = [];
    model.cache = empty();
  }
  const size = model.chunk || tokens.length;
  let logits;
  for (let at = model.seen.length; at < tokens.length; at += size) {
    if (stopped) return null;
    logits = await step(tokens.slice(at, at + size));
  }
  return logits;
}

function choose(logits, temperature) {
  let best = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i] > logits[best]) best = i;
  if (temperature <= 0) return best;
  const shares = Float64Array.from(logits, (value) => Math.exp((value - logits[best]) / temperature));
  let left = Math.random() * shares.reduce((a, b) => a + b, 0);
  for (let i = 0; i < shares.length; i++) if ((left -= shares[i]) < 0) return i;
  return best;
}

async function answer({ messages, prompt, limit, temperature }) {
  stopped = false;
  const written = messages
    ? model.template.render({ messages, add_generation_prompt: true, ...model.words })
    : prompt;
  const tokens = Array.from(model.tokenizer.encode(written, { add_special_tokens: !messages }).ids, Number);
  if (tokens.length >= model.limit) throw new Error(`the conversation has ${tokens.length} tokens, and the cache holds ${model.limit}`);
  const begin = performance.now();
  const made = [];
  let shown = "", first = 0;
  let logits = await read(tokens);
  while (logits && !stopped) {
    const token = choose(logits, temperature);
    if (!first) first = (performance.now() - begin) / 1000;
    if (model.stops.includes(token)) break;
    made.push(token);
    const whole = model.tokenizer.decode(made, { skip_special_tokens: true });
    if (!whole.endsWith("\ufffd") && whole.length > shown.length) {
      postMessage({ kind: "text", text: whole.slice(shown.length) });
      shown = whole;
    }
    if (made.length >= limit || model.seen.length + 1 >= model.limit) break;
    await new Promise((ready) => setTimeout(ready));  // hear a stop
    if (stopped) break;
    logits = await step([token]);
  }
  const seconds = (performance.now() - begin) / 1000;
  return { tokens: made, prompt: tokens, text: shown, first, rate: made.length > 1 ? (made.length - 1) / (seconds - first) : 0 };
}

const DO = { load, answer };

onmessage = async ({ data: { kind, ...given } }) => {
  if (kind === "stop") { stopped = true; return; }
  try {
    postMessage({ kind: "done", of: kind, value: await DO[kind](given) });
  } catch (error) {
    if (model) { model.seen = []; model.cache = null; }
    postMessage({ kind: "failed", of: kind, error: String(error?.message ?? error) });
  }
};
