// The chat page: a conversation over POST /v1/chat/completions, and a live view over GET /api/cluster.
//
// Everything that is shown follows from `state`; the conversation and the settings are kept in this browser, the API key
// until the tab is closed. Text is only ever set as text, never as HTML.
"use strict";

const $ = (id) => document.getElementById(id);
const make = (tag, props = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), props);
  element.append(...children);
  return element;
};
const button = (textContent, onclick) => make("button", { type: "button", textContent, onclick });
const code = (textContent) => make("code", { textContent });
const cell = (textContent, className = "num") => make("td", { textContent, className });
const bar = (share, className = "") => make("td", { className: "bar" }, make("i", { className, style: `--p: ${Math.min(1, share) * 100}%` }));

/** How often the live view asks, in milliseconds: while an answer or a rank is awaited, and while nothing is. */
const POLL_BUSY_MS = 250, POLL_IDLE_MS = 2000;
/** Alternatives shown beside a token. */
const ALTERNATIVES = 5;
/** Most messages that are kept. */
const MAX_MESSAGES = 200;
const EXAMPLES = ["What is a cat?", "What is the capital of France?", "What is 3 plus 4?"];
/** Name in the request, label, smallest, largest, step: a browser takes only whole steps from the smallest. An empty field leaves it to the server. */
const CONTROLS = [
  ["temperature", "Temperature", 0, 5, 0.01], ["top_p", "Top p", 0, 1, 0.01], ["top_k", "Top k", 0, 100000, 1],
  ["min_p", "Min p", 0, 1, 0.01], ["repetition_penalty", "Repetition penalty", 0.01, 10, 0.01],
  ["max_tokens", "Most tokens", 1, 100000, 1], ["seed", "Seed", 0, 2 ** 53 - 1, 1],
];

const stored = (name, fallback) => {
  try { return JSON.parse(localStorage.getItem(name)) ?? fallback; } catch { return fallback; }
};
const store = (name, value) => {
  try { localStorage.setItem(name, JSON.stringify(value)); } catch { /* private mode: nothing is kept */ }
};

const state = {
  /** {role, content, reasoning_content?, pieces?, stats?, error?, warnings?}; a piece is {text, thinks?, calculations?, tokens, explain?}, as one chunk of the stream has it. */
  messages: stored("messages", []),
  settings: stored("settings", { system: "", tint: false, sampling: {} }),
  /** Aborts the answer under way. */
  abort: null,
  editing: -1,
};

// ---- asking ----

async function ask(path, options = {}) {
  const key = sessionStorage.getItem("key");
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
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the answer broke off");
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const object = JSON.parse(data);
      if (object.error) throw new Error(object.error.message);
      yield object;
    }
  }
}

async function answer() {
  if (state.abort) return;
  const { system, sampling } = state.settings;
  const past = state.messages.filter((message) => !message.error).map(({ role, content, reasoning_content }) => ({ role, content, reasoning_content }));
  const messages = system.trim() ? [{ role: "system", content: system }, ...past] : past;
  const message = { role: "assistant", content: "", pieces: [] };
  state.messages.push(message);
  const abort = state.abort = new AbortController();
  const append = render();
  const start = performance.now();
  const times = [];
  let finish = "stopped";
  try {
    const body = { messages, stream: true, logprobs: true, top_logprobs: ALTERNATIVES, explain: true, ...sampling };
    const response = await ask("v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal: abort.signal });
    for await (const chunk of events(response.body)) {
      if (chunk.warnings) message.warnings = chunk.warnings;
      for (const choice of chunk.choices) {
        const tokens = choice.logprobs?.content ?? [];
        const thought = choice.delta.reasoning_content ?? "", text = choice.delta.content ?? "";
        times.push(...tokens.map(() => performance.now()));
        const { calculations } = choice.delta;
        const pieces = [{ text: text || thought, thinks: Boolean(thought && !text), calculations, tokens: tokens.map(slim), explain: choice.explain }];
        if (thought && text) pieces.unshift({ text: thought, thinks: true, tokens: [] });
        if (tokens.length || thought || text || calculations) {
          message.pieces.push(...pieces);
          pieces.forEach(append);
        }
        if (thought) message.reasoning_content = (message.reasoning_content ?? "") + thought;
        message.content += text;
        finish = choice.finish_reason ?? finish;
      }
      speed(start, times);
    }
  } catch (error) {
    if (!abort.signal.aborted) {
      message.error = error.message;
      if (error.status === 401) {
        keyRefused = false;
        askForKey();
      }
    }
  }
  if (times.length) message.stats = statistics(start, times, finish);
  state.abort = null;
  if (!message.content && !message.reasoning_content && !message.error && abort.signal.aborted) state.messages.pop();
  save();
  render();
  $("announce").textContent = message.error ? `Error: ${message.error}` : `Answer: ${message.content}`;
  $("prompt").focus();
}

/** What the page shows of a token, with its probability rounded for storage. */
const slim = ({ token, logprob, top_logprobs }) => ({
  t: token, p: round(logprob), top: top_logprobs.map((top) => [top.token, round(top.logprob)]),
});
const round = (logprob) => Number(Math.exp(logprob).toPrecision(4));

function statistics(start, times, finish) {
  const first = times[0] - start;
  const span = (times.at(-1) - times[0]) / 1000;
  return { tokens: times.length, first, rate: span > 0 ? (times.length - 1) / span : null, finish };
}

const told = ({ tokens, first, rate, finish }) =>
  [`${tokens} tokens`, rate && `${rate.toFixed(rate < 100 ? 1 : 0)} a second`, `first after ${Math.round(first)} ms`,
    { length: "cut at the most tokens", stopped: "stopped" }[finish]].filter(Boolean).join(" · ");

// ---- the conversation ----

function save() {
  if (state.messages.length > MAX_MESSAGES) state.messages = state.messages.slice(-MAX_MESSAGES);
  // Explanations are kept until the page is left: they are a hundred times the text.
  store("messages", state.messages.map((message) => ({ ...message, pieces: message.pieces?.map(({ text, thinks, calculations, tokens }) => ({ text, thinks, calculations, tokens })) })));
}

function say(text) {
  state.messages = state.messages.filter((message) => !message.error);
  state.messages.push({ role: "user", content: text });
  answer();
}

/** Forgets what follows message `index` and answers again, or, for an answer, that one anew. */
function again(index) {
  state.messages.length = state.messages[index].role === "user" ? index + 1 : index;
  answer();
}

/** Draws everything; returns how to add a piece to the message that is being answered. */
function render() {
  const busy = Boolean(state.abort);
  $("empty").hidden = state.messages.length > 0;
  $("send").hidden = busy;
  $("stop").hidden = !busy;
  document.body.classList.toggle("tint", state.settings.tint);
  const items = state.messages.map((message, index) => view(message, index, busy && index === state.messages.length - 1));
  $("messages").replaceChildren(...items);
  scroll();
  const [thought, text] = ["details", ".text"].map((part) => items.at(-1)?.querySelector(part));
  return (piece) => {
    const stick = nearEnd();
    if (piece.thinks) thought.hidden = false;
    (piece.thinks ? thought : text).append(pieceView(piece));
    // What was thought is open while there is nothing else.
    if (!piece.thinks && piece.text) thought.open = false;
    if (stick) scroll();
  };
}

const nearEnd = () => { const c = $("chat"); return c.scrollHeight - c.scrollTop - c.clientHeight < 80; };
const scroll = () => { $("chat").scrollTop = $("chat").scrollHeight; };

function view(message, index, busy) {
  const item = make("li", { className: `message ${message.role}${busy ? " busy" : ""}`, ariaBusy: busy });
  if (message.role === "user" && state.editing === index) {
    item.append(...editor(message, index));
    return item;
  }
  const walked = { tabIndex: 0, role: "group", ariaLabel: "Answer; arrow keys walk through its tokens" };
  const text = message.pieces?.length
    ? make("div", { className: "text", ...walked }, ...message.pieces.filter((piece) => !piece.thinks).map(pieceView))
    : make("div", { className: "text", textContent: message.content });
  const thoughts = message.pieces?.filter((piece) => piece.thinks) ?? [];
  if (thoughts.length || busy) {
    const summary = make("summary", { textContent: "Thinking" });
    item.append(make("details", { open: !message.content, hidden: !thoughts.length }, summary, ...thoughts.map(pieceView)));
  }
  if (message.content || busy) item.append(text);
  for (const warning of message.warnings ?? []) item.append(make("p", { className: "warning", textContent: warning }));
  if (message.error) item.append(make("p", { className: "error", role: "alert", textContent: message.error }));
  const foot = make("div", { className: "foot" });
  if (message.stats) foot.append(make("span", { textContent: told(message.stats) }));
  if (!state.abort) {
    foot.append(message.role === "assistant"
      ? button(message.error ? "Try again" : "Retry", () => again(index))
      : button("Edit", () => { state.editing = index; render(); }));
    // Browsers have a clipboard for loopback and HTTPS only.
    if (message.content && navigator.clipboard) foot.append(button("Copy", () => navigator.clipboard.writeText(message.content)));
  }
  item.append(foot);
  return item;
}

function editor(message, index) {
  const area = make("textarea", { value: message.content, rows: 2, ariaLabel: "Edit the message" });
  const close = () => { state.editing = -1; render(); $("prompt").focus(); };
  const send = () => {
    if (!area.value.trim()) return;
    state.editing = -1;
    state.messages[index] = { role: "user", content: area.value };
    again(index);
  };
  area.onkeydown = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
    if (event.key === "Escape") { event.stopPropagation(); close(); }
  };
  requestAnimationFrame(() => area.focus());
  return [area, make("div", { className: "foot" }, button("Send", send), button("Cancel", close))];
}

// ---- tokens ----

function pieceView(piece) {
  const sure = piece.tokens.reduce((product, token) => product * token.p, 1);
  const calculated = (piece.calculations ?? []).map(({ expression, result }) =>
    make("code", { className: "calculation", textContent: result === null ? expression : `${expression} = ${result}` }));
  const isEnd = !piece.text && !calculated.length;
  return make("span", { className: isEnd ? "piece end" : "piece", piece, style: `--doubt: ${1 - sure}` }, ...calculated, isEnd ? "■" : piece.text);
}

/** Shows what there is to say of a piece; all of it, and until it is closed, if `pinned`. */
function showToken(span, pinned = false) {
  document.querySelector(".piece.shown")?.classList.remove("shown");
  const box = $("token");
  box.classList.toggle("pinned", pinned);
  if (!span?.piece?.tokens.length) {
    box.hidePopover();
    return;
  }
  span.classList.add("shown");
  const explained = span.piece.explain ?? [];
  if (pinned && explained.length) box.replaceChildren(...explained.map(explanation));
  else box.replaceChildren(...span.piece.tokens.map(tokenTable));
  if (!pinned && explained.length) box.append(make("p", { className: "note", textContent: "click: the sampling chain and the step" }));
  box.showPopover();
  const at = span.getClientRects()[0], size = box.getBoundingClientRect();
  const left = Math.min(Math.max(8, at.left), innerWidth - size.width - 8);
  const below = at.bottom + 6 + size.height < innerHeight;
  box.style.left = `${left}px`;
  const top = below ? at.bottom + 6 : at.top - size.height - 6;
  // What fits neither below nor above covers some of the text.
  box.style.top = `${top < 8 ? Math.max(8, innerHeight - size.height - 8) : top}px`;
}

function tokenTable(token) {
  const rows = token.top.some(([text]) => text === token.t) ? token.top : [...token.top, [token.t, token.p]];
  const row = ([text, p]) =>
    make("tr", { className: text === token.t ? "chosen" : "" }, make("td", {}, code(visible(text))), bar(p), cell(percent(p)));
  const rank = token.top.findIndex(([text]) => text === token.t);
  const caption = rank === 0 ? "the most likely token" : rank > 0 ? `the ${["second", "third", "fourth", "fifth"][rank - 1]} choice` : "not among the first five";
  return make("table", {}, make("caption", { textContent: caption }), make("tbody", {}, ...rows.map(row)));
}

/** One token of `explain`: alternatives, what the sampling chain did, and where the time of its step went, rank by rank. */
function explanation({ token, id, forced, alternatives, chain, step }) {
  const head = make("header", {}, make("p", {}, code(visible(token))), button("Close", () => showToken(null)));
  if (forced) return make("section", {}, head, make("p", { className: "note", textContent: "Not drawn: a result of the calculator." }));
  const table = (caption, head, rows) => make("table", {}, make("caption", { textContent: caption }),
    make("thead", {}, make("tr", {}, ...head.map((textContent) => make("th", { textContent })))), make("tbody", {}, ...rows));
  const choices = alternatives.map((a) => make("tr", { className: `${a.id === id ? "chosen" : ""} ${a.removed_by ? "removed" : ""}` },
    make("td", {}, code(visible(a.token))), cell(percent(Math.exp(a.logprob))),
    cell(a.removed_by ? a.removed_by : percent(a.probability)), bar(a.probability)));
  const processors = chain.map((p) => make("tr", {},
    cell([p.processor, p.value === null ? "" : Number(p.value.toPrecision(4))].join(" "), ""),
    cell(p.removed ? `${p.removed} tokens, ${percent(p.removed_mass)}` : p.changed ? `${p.changed} logits changed` : "nothing")));
  const stages = step.ranks[0]?.stages.toSorted((a, b) => (a.kind === "waiting") - (b.kind === "waiting")) ?? [];
  const of = (rank, { stage, kind }) => rank.stages.find((other) => other.stage === stage && other.kind === kind)?.ms;
  const name = ({ stage, kind }) => ({ reduction: `all-reduce: ${stage}`, waiting: "all-reduce: of these, waiting" })[kind] ?? stage;
  const times = stages.map((stage) => make("tr", {}, cell(name(stage), ""),
    ...step.ranks.map((rank) => cell(of(rank, stage)?.toFixed(3) ?? "–")), bar(stage.ms / step.ranks[0].ms, stage.kind)));
  times.push(make("tr", { className: "whole" }, cell("the step", ""), ...step.ranks.map((rank) => cell(rank.ms.toFixed(3)))));
  const many = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
  return make("section", {}, head, make("div", {},
    table("alternatives", ["", "model", "drawn", ""], choices),
    processors.length ? table("what the sampling chain removed", [], processors) : make("p", { className: "note", textContent: "Every processor is neutral." })),
    table(`step ${step.number}: ${many(step.sequences, "sequence")}, ${many(step.tokens, "token")}, ${step.ms.toFixed(2)} ms`,
      ["ms", ...step.ranks.map(({ rank }) => `rank ${rank}`), ""], times));
}

const visible = (text) => text.replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "⇥") || "∅";
const percent = (p) => (p >= 0.1 ? `${(p * 100).toFixed(0)} %` : p >= 0.001 ? `${(p * 100).toFixed(1)} %` : "< 0.1 %");

const messages = $("messages");
const isPinned = () => $("token").classList.contains("pinned");
messages.addEventListener("pointerover", (event) => isPinned() || showToken(event.target.closest(".piece")));
messages.addEventListener("pointerleave", () => isPinned() || showToken(null));
messages.addEventListener("focusout", () => isPinned() || showToken(null));
document.addEventListener("click", (event) => {
  const piece = event.target.closest("#messages .piece");
  if (piece) showToken(piece, true);
  else if (isPinned() && !event.target.closest("#token")) showToken(null);
});
messages.addEventListener("keydown", (event) => {
  const shown = event.target.querySelector(".piece.shown");
  if (event.key === "Enter" && shown) showToken(shown, true);
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step || !event.target.classList.contains("text")) return;
  const pieces = [...event.target.querySelectorAll(".piece")];
  const at = pieces.findIndex((piece) => piece.classList.contains("shown"));
  const next = pieces[Math.max(0, Math.min(pieces.length - 1, at + step))];
  event.preventDefault();
  showToken(next);
  $("announce").textContent = next.piece.tokens.map((token) => `${token.t}, ${percent(token.p)}`).join("; ");
});
$("chat").addEventListener("scroll", () => isPinned() || showToken(null), { passive: true });

// ---- the live view ----

const hue = (n) => (250 + n * 137.5) % 360;
const bytes = (n) => (n >= 1e9 ? `${(n / 1e9).toFixed(2)} GB` : n >= 1e6 ? `${(n / 1e6).toFixed(1)} MB` : `${Math.round(n / 1e3)} kB`);

function speed(start, times) {
  const now = times.length ? statistics(start, times, "").rate : null;
  $("speed").textContent = now ? now.toFixed(now < 100 ? 1 : 0) : "–";
  if (times.length < 3) return;
  $("timing").textContent = `first token after ${Math.round(times[0] - start)} ms, then ${(1000 / now).toFixed(1)} ms each`;
  // Each point is the rate over the four tokens before it.
  const rates = times.slice(1).map((time, i) => (Math.min(i + 1, 4) * 1000) / Math.max(0.1, time - times[Math.max(0, i - 3)]));
  const top = Math.max(...rates);
  const points = rates.map((rate, i) => `${(i / Math.max(1, rates.length - 1)) * 240},${34 - (rate / top) * 30}`);
  $("pace").firstElementChild.setAttribute("points", points.join(" "));
}

const knownRestarts = [];
const duration = (s) => (s >= 10 ? `${s.toFixed(0)} s` : s >= 1 ? `${s.toFixed(1)} s` : `${Math.round(s * 1000)} ms`);

function ranks(cluster) {
  const share = (name, [from, to], whole) => {
    const fill = make("i", { style: `--from: ${(from / whole) * 100}%; --size: ${((to - from) / whole) * 100}%` });
    return make("div", { className: "share", title: `${name} ${from} to ${to} of ${whole}` }, make("span", { textContent: name }), make("b", {}, fill));
  };
  const card = (rank) => {
    const [from, to] = rank.heads;
    const cells = Array.from({ length: cluster.n_head }, (_, head) => make("i", { className: head >= from && head < to ? "own" : "" }));
    const heads = make("div", { className: "heads", title: `heads ${from} to ${to - 1} of ${cluster.n_head}` }, ...cells);
    // Query heads in groups read the same keys and values, which may stand on several ranks.
    const read = cluster.n_kv_head < cluster.n_head ? ` on ${rank.kv_heads[1] - rank.kv_heads[0]} of ${cluster.n_kv_head} of keys and values` : "";
    const title = make("p", {}, make("strong", { textContent: `Rank ${rank.rank}` }), ` · ${to - from} of ${cluster.n_head} heads${read} · ${bytes(rank.weight_bytes)}`);
    const times = rank.restarts === 1 ? "once" : `${rank.restarts} times`;
    const life = rank.lost ? "lost: another takes its place"
      : rank.restarts ? `lost ${times}, last back after ${duration(rank.back_after_s)}` : "";
    // Drawn anew as it changes: who has just come back shows it for a moment.
    const isBack = knownRestarts[rank.rank] < rank.restarts;
    knownRestarts[rank.rank] = rank.restarts;
    return make("div", { className: `rank${rank.lost ? " lost" : isBack ? " back" : ""}`, style: `--hue: ${hue(rank.rank)}` },
      title, heads, share("FFN", rank.ffn, cluster.n_inner), share("vocabulary", rank.vocab, cluster.vocab_size),
      ...(life ? [make("p", { className: "life", textContent: life })] : []));
  };
  $("ranks").replaceChildren(...cluster.ranks.map(card));
}

/** Every block of the pool as a square: whose it is, how full, shared or not. */
function blocks(cluster) {
  const canvas = $("blocks"), total = cluster.blocks_total;
  const holders = new Map();
  for (const sequence of cluster.sequences) {
    sequence.blocks.forEach((block, i) => {
      const filled = Math.min(1, (sequence.computed - i * cluster.block_tokens) / cluster.block_tokens);
      const held = holders.get(block) ?? { ids: [], filled };
      held.ids.push(sequence.id);
      holders.set(block, held);
    });
  }
  const idle = new Set(cluster.blocks_idle);
  const width = canvas.clientWidth || 270;
  const side = total <= 300 ? 12 : total <= 800 ? 9 : total <= 3000 ? 6 : 4;
  const columns = Math.max(1, Math.floor(width / side)), rows = Math.max(1, Math.ceil(total / columns));
  const scale = devicePixelRatio || 1;
  canvas.width = width * scale;
  canvas.height = rows * side * scale;
  canvas.style.height = `${rows * side}px`;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  const style = getComputedStyle(document.documentElement);
  const [empty, kept, ink] = ["--empty-block", "--kept-block", "--ink"].map((name) => style.getPropertyValue(name));
  let shared = 0;
  for (let block = 0; block < total; block++) {
    const x = (block % columns) * side, y = Math.floor(block / columns) * side, size = side - (side > 6 ? 2 : 1);
    pen.fillStyle = idle.has(block) ? kept : empty;
    pen.fillRect(x, y, size, size);
    const held = holders.get(block);
    if (!held) continue;
    pen.fillStyle = `oklch(.68 .13 ${hue(held.ids[0])})`;
    const height = Math.max(1, Math.round(size * held.filled));
    pen.fillRect(x, y + size - height, size, height);
    if (held.ids.length > 1) {
      shared++;
      pen.strokeStyle = ink;
      pen.strokeRect(x + 0.5, y + 0.5, size - 1, size - 1);
    }
  }
  const held = total - cluster.blocks_free;
  const note = `${held} of ${total} blocks of ${cluster.block_tokens} positions held${shared ? `, ${shared} shared (framed)` : ""}` +
    `${idle.size ? `, ${idle.size} kept for prompts that begin alike` : ""}` +
    (cluster.waiting ? `; ${cluster.waiting} waiting` : "");
  $("blocks-note").textContent = canvas.ariaLabel = note;
  $("sequences").replaceChildren(...cluster.sequences.slice(0, 12).map((sequence) => {
    const words = `#${sequence.id} · ${sequence.prompt_tokens} + ${sequence.tokens - sequence.prompt_tokens} tokens · ${sequence.blocks.length} blocks`;
    return make("li", {}, make("i", { style: `--hue: ${hue(sequence.id)}` }), words);
  }));
}

let drawnRanks = "", isReady = true;
async function look() {
  const shown = !document.body.classList.contains("no-live");
  try {
    const cluster = await (await ask("api/cluster")).json();
    isReady = cluster.ready;
    $("state").dataset.state = isReady ? "ready" : "down";
    const lost = cluster.ranks.filter((rank) => rank.lost).map((rank) => `, rank ${rank.rank} lost`).join("");
    $("model").textContent = `${cluster.model} · ${cluster.dtype} · ${cluster.ranks.length} rank${cluster.ranks.length > 1 ? "s" : ""}${lost}`;
    if (shown) {
      const key = JSON.stringify(cluster.ranks);
      if (key !== drawnRanks) ranks(cluster);
      drawnRanks = key;
      blocks(cluster);
    }
  } catch (error) {
    $("state").dataset.state = "down";
    $("model").textContent = error.status === 401 ? "an API key is needed" : "the server does not answer";
    if (error.status === 401) askForKey();
  }
}

async function watch() {
  for (;;) {
    if (!document.hidden) await look();
    await new Promise((resolve) => setTimeout(resolve, state.abort || !isReady ? POLL_BUSY_MS : POLL_IDLE_MS));
  }
}

// ---- dialogs ----

let keyRefused = false;
function askForKey() {
  if ($("key").open || keyRefused) return;
  $("key-value").value = "";
  $("key").showModal();
}
$("no-key").onclick = () => $("key").close("");
$("key").addEventListener("close", () => {
  keyRefused = $("key").returnValue !== "use";
  if (!keyRefused) {
    sessionStorage.setItem("key", $("key-value").value.trim());
    look();
  }
});

/** Takes and keeps settings. */
function settle(changed) {
  Object.assign(state.settings, changed);
  store("settings", state.settings);
  document.body.classList.toggle("tint", state.settings.tint);
}

const fieldsOf = new Map();
for (const [name, label, min, max, step] of CONTROLS) {
  const input = make("input", { type: "number", min, max, step, placeholder: "default", inputMode: "decimal" });
  input.oninput = () => {
    if (input.value === "" || !input.checkValidity()) delete state.settings.sampling[name];
    else state.settings.sampling[name] = Number(input.value);
    settle({});
  };
  fieldsOf.set(name, input);
  $("controls").append(make("label", {}, label, input));
}
function showSettings() {
  $("system").value = state.settings.system;
  $("tint").checked = state.settings.tint;
  for (const [name, input] of fieldsOf) input.value = state.settings.sampling[name] ?? "";
}
$("system").oninput = (event) => settle({ system: event.target.value });
$("tint").onchange = (event) => settle({ tint: event.target.checked });
$("defaults").onclick = () => { settle({ system: "", tint: false, sampling: {} }); showSettings(); };
$("show-settings").onclick = () => { showSettings(); $("settings").showModal(); };

// ---- keys and buttons ----

const prompt = $("prompt");
const fit = () => { prompt.style.height = "auto"; prompt.style.height = `${prompt.scrollHeight + 2}px`; };
prompt.oninput = fit;
prompt.onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $("compose").requestSubmit(); }
  if (event.key === "ArrowUp" && !prompt.value && !state.abort) {
    const last = state.messages.findLastIndex((message) => message.role === "user");
    if (last >= 0) { event.preventDefault(); state.editing = last; render(); }
  }
};
$("compose").onsubmit = (event) => {
  event.preventDefault();
  const text = prompt.value.trim();
  if (!text || state.abort) return;
  prompt.value = "";
  fit();
  say(text);
};
$("stop").onclick = () => state.abort?.abort();
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (isPinned()) showToken(null);
  else state.abort?.abort();
});
$("new").onclick = () => { state.abort?.abort(); state.messages = []; state.editing = -1; save(); render(); prompt.focus(); };

function showLive(shown) {
  document.body.classList.toggle("no-live", !shown);
  $("show-live").setAttribute("aria-pressed", shown);
  store("live", shown);
  if (shown) { drawnRanks = ""; look(); }
}
$("show-live").onclick = () => showLive(document.body.classList.contains("no-live"));
const narrow = matchMedia("(max-width: 54rem)").matches;

$("examples").append(...EXAMPLES.map((text) => button(text, () => say(text))));
ask("api/model_info").then((response) => response.json()).then((info) => {
  if (!info.chat_template) $("about").append(" This model has no chat template: turns are written as User: and Assistant:, which it may not have learned.");
}).catch(() => { /* the state in the header says it */ });
showLive(narrow ? false : stored("live", true));
render();
watch();
