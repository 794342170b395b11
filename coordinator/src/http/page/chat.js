// The chat page: conversations over POST /v1/chat/completions, and what the server does meanwhile.
//
// Everything that is shown follows from `state`. Conversations are kept in this browser (conversations.js), settings too, the API
// key until the tab is closed (ask.js). A question is kept at once, an answer while it comes: a reload loses nothing.

import { $, make, button, stored, store, bytes, confirmed, download } from "./dom.js";
import { ask, events, apiKey } from "./ask.js";
import * as conversations from "./conversations.js";
import { show, copyButton } from "./markdown.js";
import { hover, explain, pieceSpan } from "./tokens.js";
import { live, speed } from "./live.js";
import { t, language, speak } from "./words.js";

/** How often the server is asked how it is, in milliseconds: while an answer or a rank is awaited, and while nothing is. */
const POLL_BUSY_MS = 250, POLL_IDLE_MS = 2000;
/** How often an answer that comes is kept. */
const SAVE_MS = 400;
/** Alternatives shown beside a token. */
const ALTERNATIVES = 5;
const EXAMPLES = ["Explain in two sentences why the sky is blue.", "Write a haiku about a small computer.", "How do I reverse a list in Python?"];
/** What the built-in model has learned. */
const DEMO_EXAMPLES = ["What is a cat?", "What is the capital of France?", "What is 3 + 4?"];
/** Name in the request, label, smallest, largest, step: a browser takes only whole steps from the smallest. An empty field leaves it to the server. */
const CONTROLS = [
  ["temperature", "Temperature", 0, 5, 0.01], ["top_p", "Top p", 0, 1, 0.01], ["top_k", "Top k", 0, 100000, 1],
  ["min_p", "Min p", 0, 1, 0.01], ["repetition_penalty", "Repetition penalty", 0.01, 10, 0.01],
  ["max_tokens", "Most tokens", 1, 100000, 1], ["seed", "Seed", 0, 2 ** 53 - 1, 1],
];

const state = {
  conversation: conversations.begin(),
  settings: { tint: false, sampling: {}, theme: "", ...stored("settings", {}) },
  /** Aborts the answer under way. */
  abort: null,
  /** Settles when the last answer has ended and is kept. */
  over: Promise.resolve(),
  editing: -1,
  /** Of GET /api/model_info. */
  info: null,
};

// ---- asking ----

function answer() {
  if (!state.abort) state.over = answerNow();
}

async function answerNow() {
  const { conversation, settings: { sampling } } = state;
  const past = conversation.messages.map(({ role, content, reasoning_content }) => ({ role, content, reasoning_content }));
  const messages = conversation.system.trim() ? [{ role: "system", content: conversation.system }, ...past] : past;
  // What broke off is gone on with, in the same turn of the assistant.
  const goesOn = conversation.messages.at(-1)?.role === "assistant" && conversation.messages.at(-1);
  const message = goesOn || { role: "assistant", content: "", pieces: [] };
  if (!goesOn) conversation.messages.push(message);
  Object.assign(message, { pieces: message.pieces ?? inOnePiece(message), error: undefined, broken: undefined });
  const abort = state.abort = new AbortController();
  await keep();
  const grow = render();
  const start = performance.now();
  const times = [];
  let finish = "stopped", kept = start;
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
        if (tokens.length || thought || text || calculations) message.pieces.push(...pieces);
        if (thought) message.reasoning_content = (message.reasoning_content ?? "") + thought;
        message.content += text;
        finish = choice.finish_reason ?? finish;
      }
      grow();
      speed(start, times);
      if (performance.now() - kept > SAVE_MS) {
        kept = performance.now();
        conversations.save(conversation);
      }
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
  if (!message.content && !message.reasoning_content && !message.error && abort.signal.aborted) conversation.messages.pop();
  conversation.changed = Date.now();
  await conversations.save(conversation);
  list();
  render();
  if (state.conversation === conversation) {
    $("announce").textContent = message.error ? `${t("Error")}: ${message.error}` : `${t("Answer")}: ${message.content}`;
    $("prompt").focus();
  }
}

/** An answer whose tokens are not known, as of an imported conversation. */
const inOnePiece = ({ content, reasoning_content }) =>
  [reasoning_content && { text: reasoning_content, thinks: true, tokens: [] }, content && { text: content, tokens: [] }].filter(Boolean);

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
  [t("{n} tokens", { n: tokens }), rate && t("{n} a second", { n: rate.toFixed(rate < 100 ? 1 : 0) }), t("first after {n} ms", { n: Math.round(first) }),
    { length: t("cut at the most tokens"), stopped: t("stopped") }[finish]].filter(Boolean).join(" · ");

// ---- conversations ----

/** Keeps the conversation of now, and lists it. */
async function keep() {
  const { conversation } = state;
  conversation.changed = Date.now();
  conversation.title ||= conversations.titled(conversation);
  store("last", conversation.id);
  await conversations.save(conversation);
  list();
}

/** Ends the answer under way, and waits until what came of it is kept. */
async function leave() {
  state.abort?.abort();
  await state.over;
}

async function go(conversation) {
  await leave();
  Object.assign(state, { conversation, editing: -1 });
  store("last", conversation.id);
  showList(false);
  render();
  $("prompt").focus();
}

function list() {
  const found = conversations.list($("search").value);
  $("unkept").hidden = conversations.keeps();
  const entry = (one) => {
    const show = async () => { await leave(); go(await conversations.load(one.id)); };
    const open = button(one.title || t("Untitled"), show, { className: "open", title: new Date(one.changed).toLocaleString(language()) });
    if (one.id === state.conversation.id) open.ariaCurrent = "true";
    const named = (name) => `${t(name)}: ${one.title}`;
    return make("li", {}, open,
      button("✎", () => rename(one), { title: t("Rename"), ariaLabel: named("Rename") }),
      button("↓", () => download(`${one.title.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40) || "chat"}.json`, conversations.exported([one])), { title: t("Export"), ariaLabel: named("Export") }),
      button("✕", () => remove(one), { title: t("Delete"), ariaLabel: named("Delete") }));
  };
  const none = make("li", { className: "note", textContent: $("search").value ? t("Nothing is found.") : t("What you talk about is kept here, in this browser.") });
  $("conversations").replaceChildren(...(found.length ? found.map(entry) : [none]));
}

async function rename(one) {
  const item = [...$("conversations").children][conversations.list($("search").value).findIndex((other) => other.id === one.id)];
  const box = make("input", { value: one.title, ariaLabel: t("Title"), maxLength: 200 });
  let over = false;
  const done = async (taken) => {
    if (over) return;
    over = true;
    if (taken && box.value.trim()) {
      const conversation = one.id === state.conversation.id ? state.conversation : await conversations.load(one.id);
      conversation.title = box.value.trim();
      await conversations.save(conversation);
    }
    list();
  };
  box.onkeydown = (event) => { if (event.key === "Enter") done(true); if (event.key === "Escape") { event.stopPropagation(); done(false); } };
  box.onblur = () => done(true);
  item.replaceChildren(box);
  box.select();
  box.focus();
}

async function remove(one) {
  if (!await confirmed(t("Delete “{title}”? It cannot be had back.", { title: one.title || t("Untitled") }), t("Delete"))) return;
  if (one.id === state.conversation.id) await go(conversations.begin());
  await conversations.remove(one.id);
  list();
}

// ---- the conversation ----

function say(text) {
  const { conversation } = state;
  conversation.messages = conversation.messages.filter((message) => !message.error || message.content);
  conversation.messages.push({ role: "user", content: text });
  answer();
}

/** Answers anew from message `index` on, changed or not; what there was is kept in a conversation of its own. */
async function again(index, changed = null) {
  const { conversation } = state;
  const { messages } = conversation;
  const rest = messages[index].role === "user" ? index + 1 : index;
  if (messages.slice(rest).some((message) => message.content)) {
    await conversations.save({ ...conversations.begin(conversation.system), title: `${conversation.title} (${t("before")})`, messages: [...messages] });
  }
  messages.length = rest;
  if (changed) messages[index] = changed;
  answer();
}

/** What a piece shows: its text, behind what was calculated for it. */
const shown = ({ text, calculations }) =>
  (calculations ?? []).map(({ expression, result }) => `\`${result === null ? expression : `${expression} = ${result}`}\` `).join("") + text;

/** Draws everything; returns what draws the answer that comes again, at the next frame, or later where it takes long to draw. */
function render() {
  const { conversation: { messages, system } } = state;
  const busy = Boolean(state.abort);
  $("empty").hidden = messages.length > 0;
  $("send").hidden = busy;
  $("stop").hidden = !busy;
  document.body.classList.toggle("tint", state.settings.tint);
  if ($("system").value !== system) $("system").value = system;
  $("system-box").open ||= Boolean(system);
  const items = messages.map((message, index) => view(message, index, busy && index === messages.length - 1));
  $("messages").replaceChildren(...items);
  hint();
  scroll();
  let isPlanned = false, isStale = false;
  const draw = () => {
    const begun = performance.now(), stick = nearEnd();
    isStale = false;
    if (items.at(-1).isConnected && state.abort) fill(items.at(-1), messages.at(-1));
    if (stick) scroll();
    // All of a long answer is read anew each time: most of the time is left to the reader.
    setTimeout(() => { isPlanned = false; if (isStale) grow(); }, 3 * (performance.now() - begun));
  };
  const grow = () => {
    isStale = true;
    if (isPlanned || !items.length) return;
    isPlanned = true;
    requestAnimationFrame(draw);
  };
  return grow;
}

const nearEnd = () => { const c = $("chat"); return c.scrollHeight - c.scrollTop - c.clientHeight < 80; };
const scroll = () => { $("chat").scrollTop = $("chat").scrollHeight; };

/** Shows what an answer says and thinks so far. */
function fill(item, message) {
  const [thought, text] = ["details", ".text"].map((part) => item.querySelector(part));
  const pieces = message.pieces ?? inOnePiece(message);
  const part = (thinks) => {
    let from = 0;
    const woven = pieces.filter((piece) => Boolean(piece.thinks) === thinks).map((piece) => {
      const woven = { from, piece };
      from += shown(piece).length;
      return woven;
    });
    return [woven.map(({ piece }) => shown(piece)).join(""), woven];
  };
  const [thoughts, thinking] = part(true);
  thought.hidden = !thinking.length;
  if (thinking.length) {
    // What was thought is open while there is nothing else.
    if (thought.wasFull === undefined || (!thought.wasFull && message.content)) thought.open = !message.content;
    thought.wasFull = Boolean(message.content);
    show(thought.lastElementChild, thoughts, thinking, pieceSpan);
  }
  const [said, saying] = part(false);
  if (item.asSource) {
    text.replaceChildren(...saying.map(({ piece }) => pieceSpan(piece, shown(piece) || "■")));
    return;
  }
  show(text, said, saying, pieceSpan);
  // The token that ends a text has none.
  text.querySelector(".piece.end")?.remove();
  const end = saying.at(-1)?.piece;
  if (end && !shown(end) && end.tokens.length) {
    const mark = pieceSpan(end, "■");
    mark.classList.add("end");
    (text.lastElementChild?.matches("p, h3, h4, h5, h6") ? text.lastElementChild : text).append(mark);
  }
}

function view(message, index, busy) {
  const item = make("li", { className: `message ${message.role}${busy ? " busy" : ""}`, ariaBusy: busy });
  if (message.role === "user" && state.editing === index) {
    item.append(...editor(message, index));
    return item;
  }
  const isAnswer = message.role === "assistant";
  if (!isAnswer) item.append(make("div", { className: "text", textContent: message.content }));
  else {
    const summary = make("summary", { textContent: t("Thinking") });
    item.append(make("details", { hidden: true }, summary, make("div", { className: "markdown" })));
    item.append(make("div", { className: "text markdown", tabIndex: 0, role: "group", ariaLabel: t("Answer; arrow keys walk through its tokens") }));
    fill(item, message);
    if (!message.content && !busy) item.querySelector(".text").remove();
  }
  for (const warning of message.warnings ?? []) item.append(make("p", { className: "warning", textContent: warning }));
  if (message.error) item.append(make("p", { className: "error", role: "alert", textContent: message.error }));
  if (message.broken) item.append(make("p", { className: "warning", textContent: t("The page was left while this answer came.") }));
  const foot = make("div", { className: "foot" });
  if (message.stats) foot.append(make("span", { textContent: told(message.stats) }));
  if (!state.abort) {
    const isLast = index === state.conversation.messages.length - 1;
    if (isAnswer && isLast && message.content && (message.broken || message.error || (message.stats?.finish ?? "stopped") === "stopped")) foot.append(button(t("Go on"), () => answer()));
    foot.append(isAnswer
      ? button(message.error ? t("Try again") : t("Retry"), () => again(index))
      : button(t("Edit"), () => { state.editing = index; render(); }));
    if (isAnswer && message.pieces?.length) {
      const toggle = button(t("Source"), () => {
        item.asSource = !item.asSource;
        toggle.setAttribute("aria-pressed", item.asSource);
        const text = item.querySelector(".text");
        text.replaceChildren();
        text.classList.toggle("source", item.asSource);
        fill(item, message);
      }, { title: t("The text as the model wrote it, every token of it"), "aria-pressed": false });
      foot.append(toggle);
    }
    // Browsers have a clipboard for loopback and HTTPS only.
    if (message.content && navigator.clipboard) foot.append(copyButton(() => message.content));
  }
  item.append(foot);
  return item;
}

function editor(message, index) {
  const area = make("textarea", { value: message.content, rows: 2, ariaLabel: t("Edit the message") });
  const close = () => { state.editing = -1; render(); $("prompt").focus(); };
  const send = async () => {
    if (!area.value.trim()) return;
    state.editing = -1;
    await again(index, { role: "user", content: area.value });
  };
  area.onkeydown = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
    if (event.key === "Escape") { event.stopPropagation(); close(); }
  };
  requestAnimationFrame(() => area.focus());
  return [area, make("div", { className: "foot" }, button(t("Send"), send), button(t("Cancel"), close))];
}

/** Under the message: which keys do what, or, where Enter just did nothing, why. */
function hint(why = "") {
  const keys = t("Enter sends, Shift Enter breaks the line, Esc stops, ↑ edits the last message");
  $("hints").textContent = why || keys;
  $("hints").classList.toggle("why", Boolean(why));
}

// ---- tokens ----

const messages = $("messages");
messages.addEventListener("pointerover", (event) => hover(event.target.closest(".piece")));
messages.addEventListener("pointerleave", () => hover(null));
messages.addEventListener("focusout", () => hover(null));
messages.addEventListener("click", (event) => {
  const piece = event.target.closest(".piece")?.piece;
  // Who marks text to copy it asks for nothing.
  if (piece?.tokens.length && getSelection().isCollapsed) {
    explain(piece);
    openPanel("token");
  }
});
messages.addEventListener("keydown", (event) => {
  const text = event.target;
  if (!text.classList.contains("text")) return;
  const spans = [...text.querySelectorAll(".piece")];
  const pieces = [...new Set(spans.map((span) => span.piece))];
  const at = pieces.indexOf(text.querySelector(".piece.shown")?.piece);
  if (event.key === "Enter" && at >= 0) {
    explain(pieces[at]);
    openPanel("token");
  }
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step || !pieces.length) return;
  const next = pieces[Math.max(0, Math.min(pieces.length - 1, at + step))];
  event.preventDefault();
  hover(spans.find((span) => span.piece === next));
  $("announce").textContent = next.tokens.map((token) => `${token.t}, ${Math.round(token.p * 100)} %`).join("; ");
});
$("chat").addEventListener("scroll", () => hover(null), { passive: true });

// ---- the panel ----

const TABS = { live: "tab-live", token: "tab-token", card: "tab-about" };

function openPanel(name) {
  for (const [panel, tab] of Object.entries(TABS)) {
    $(panel).hidden = panel !== name;
    $(tab).setAttribute("aria-selected", panel === name);
    $(tab).tabIndex = panel === name ? 0 : -1;
  }
  $("panel").hidden = !name;
  document.body.classList.toggle("with-panel", Boolean(name));
  $("show-live").setAttribute("aria-pressed", name === "live");
  store("panel", name ?? "");
  hover(null);
  if (name === "live") { live.draw(); look(); }
  if (name === "card") about();
}
for (const [panel, tab] of Object.entries(TABS)) {
  $(tab).onclick = () => openPanel(panel);
  $(tab).onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const names = Object.keys(TABS);
    const next = names[(names.indexOf(panel) + step + names.length) % names.length];
    openPanel(next);
    $(TABS[next]).focus();
  };
}
$("close-panel").onclick = () => openPanel(null);
$("show-live").onclick = () => openPanel(live.isShown() ? null : "live");
$("state").onclick = () => openPanel("card");

/** What is served, by which numbers. */
function about() {
  const { info } = state;
  if (!info) return $("card").replaceChildren(make("p", { className: "note", textContent: t("the server does not answer") }));
  const { config } = info;
  const facts = [
    [t("Family"), info.model_type], [t("Parameters"), info.parameters.toLocaleString(language())], [t("Computed in"), info.dtype],
    [t("Ranks"), info.nproc], [t("Weights, all ranks"), bytes(info.weight_bytes)], [t("Layers"), config.n_layer], [t("Width"), config.n_embd],
    [t("Heads"), config.n_kv_head < config.n_head ? t("{n}, on {kv} of keys and values", { n: config.n_head, kv: config.n_kv_head }) : config.n_head],
    [t("Vocabulary"), config.vocab_size], [t("Longest text"), t("{n} tokens", { n: config.n_positions })],
    [t("Chat template"), info.chat_template ? t("its own") : t("none: a plain transcript")],
    [t("System text"), info.system_text ? t("obeyed, as far as the model does") : t("the template has no place for one")],
    [t("Thinks aloud"), info.thinks ? t("yes") : t("no")], [t("Calculator"), info.calculator ? t("yes") : t("no")],
    ...CONTROLS.filter(([name]) => name !== "seed").map(([name, label]) => [t(label), defaultOf(name)]), [t("Build"), info.build_id],
  ];
  const rows = facts.map(([name, value]) => make("tr", {}, make("th", { scope: "row", textContent: name }), make("td", { textContent: value })));
  const link = (href, words) => make("li", {}, make("a", { href, target: "_blank", textContent: t(words) }));
  $("card").replaceChildren(make("h2", { textContent: info.model }), make("table", {}, make("tbody", {}, ...rows)),
    make("h2", { textContent: t("More") }),
    make("ul", { className: "links" }, link("learn", "Lessons: how a model is served, step by step"), link("docs", "HTTP: the routes and their fields"), link("openapi.json", "The same for programs"), link("metrics", "Metrics, for Prometheus")));
}

const defaultOf = (name) => {
  const value = state.info?.defaults?.[name];
  return name === "seed" ? t("another each time") : value === undefined ? "" : value === null ? t("as many as fit") : value;
};

// ---- how the server is ----

let isReady = true, looking = false;
async function look() {
  if (looking) return;
  looking = true;
  try {
    const cluster = await (await ask("api/cluster")).json();
    isReady = cluster.ready;
    const lost = cluster.ranks.filter((rank) => rank.lost).map((rank) => t(", rank {n} lost", { n: rank.rank })).join("");
    tell(cluster.draining ? "drain" : isReady ? "ready" : "down",
      cluster.draining ? t("the server is shutting down") : `${cluster.model} · ${cluster.dtype} · ${cluster.ranks.length === 1 ? t("1 rank") : t("{n} ranks", { n: cluster.ranks.length })}${lost}`);
    if (!state.info) await meet();
    live.tell(cluster.draining ? null : cluster, t("The server is shutting down"));
    if (live.isShown() && !cluster.draining) live.take(await (await ask(`api/steps?next=${live.next()}`)).json());
  } catch (error) {
    tell("down", error.status === 401 ? t("an API key is needed") : t("the server does not answer"));
    live.tell(null, error.status === 401 ? t("An API key is needed") : t("The server does not answer"));
    if (error.status === 401) askForKey();
  } finally {
    looking = false;
  }
}

function tell(how, words) {
  $("state").dataset.state = how;
  $("model").textContent = words;
}

/** Learns what is served, once. */
async function meet() {
  state.info = await (await ask("api/model_info")).json();
  showSettings();
  welcome();
  if (!$("card").hidden) about();
}

function welcome() {
  const { info } = state;
  const isDemo = info?.model === "nano-chat";
  $("examples").replaceChildren(...(isDemo ? DEMO_EXAMPLES : EXAMPLES).map((text) => button(text, () => say(text))));
  const model = !info ? "" : isDemo ? t("The built-in model is tiny: it knows 4,000 English words, capitals and sums up to 12, and nothing else. ") : "";
  const template = info && !info.chat_template ? t(" This model has no chat template: turns are written as User: and Assistant:, which it may not have learned.") : "";
  $("about").textContent = model + t("Every answer shows how it came about: point at a token to see how likely it was and what else could have stood there, click it to see why it was chosen and where the time went.") + template;
  $("system-note").hidden = !info || info.system_text;
  $("system-note").textContent = t("This model's chat template has no place for a system text: it is left out.");
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
  $("key-wrong").hidden = !apiKey.get();
  $("key-value").value = "";
  $("key").returnValue = "";
  $("key").showModal();
}
$("no-key").onclick = () => $("key").close("");
$("key").addEventListener("close", () => {
  keyRefused = $("key").returnValue !== "use";
  if (!keyRefused) {
    apiKey.set($("key-value").value.trim());
    look();
  }
});

/** Takes and keeps settings. */
function settle(changed) {
  Object.assign(state.settings, changed);
  store("settings", state.settings);
  document.body.classList.toggle("tint", state.settings.tint);
  if (state.settings.theme) document.documentElement.dataset.theme = state.settings.theme;
  else delete document.documentElement.dataset.theme;
  live.draw();
}

const fieldsOf = new Map();
for (const [name, label, min, max, step] of CONTROLS) {
  const input = make("input", { type: "number", min, max, step, inputMode: "decimal", name });
  input.oninput = () => {
    if (input.value === "" || !input.checkValidity()) delete state.settings.sampling[name];
    else state.settings.sampling[name] = Number(input.value);
    settle({});
  };
  fieldsOf.set(name, input);
  $("controls").append(make("label", {}, make("span", { textContent: label, "data-t": "" }), input));
}
function showSettings() {
  $("tint").checked = state.settings.tint;
  $("theme").value = state.settings.theme;
  $("language").value = language();
  for (const [name, input] of fieldsOf) {
    input.value = state.settings.sampling[name] ?? "";
    input.placeholder = defaultOf(name);
  }
}
$("tint").onchange = (event) => settle({ tint: event.target.checked });
$("theme").onchange = (event) => settle({ theme: event.target.value });
$("language").onchange = (event) => {
  store("language", event.target.value);
  // Everything is drawn once in one language.
  location.reload();
};
$("defaults").onclick = async () => {
  if (!await confirmed(t("Set all of these back to what they were at first?"), t("Defaults"))) return;
  settle({ tint: false, sampling: {}, theme: "" });
  showSettings();
};
$("show-settings").onclick = () => { showSettings(); $("settings").showModal(); };

// ---- keys and buttons ----

const prompt = $("prompt");
const fit = () => { prompt.style.height = "auto"; prompt.style.height = `${prompt.scrollHeight + 2}px`; };
prompt.oninput = () => { fit(); hint(); };
prompt.onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $("compose").requestSubmit(); }
  if (event.key === "ArrowUp" && !prompt.value && !state.abort) {
    const last = state.conversation.messages.findLastIndex((message) => message.role === "user");
    if (last >= 0) { event.preventDefault(); state.editing = last; render(); }
  }
};
$("compose").onsubmit = (event) => {
  event.preventDefault();
  const text = prompt.value.trim();
  if (!text) return;
  if (state.abort) return hint(t("An answer is coming: Esc stops it, then Enter sends."));
  prompt.value = "";
  fit();
  say(text);
};
$("system").oninput = () => { state.conversation.system = $("system").value; if (state.conversation.messages.length) conversations.save(state.conversation); };
$("stop").onclick = () => state.abort?.abort();
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (state.abort) state.abort.abort();
  else if (document.body.classList.contains("with-list")) showList(false);
  else if (!$("token").hidden) openPanel(null);
});
$("new").onclick = () => go(conversations.begin());
$("search").oninput = list;
$("export").onclick = () => download("nanoinfer-conversations.json", conversations.exported(conversations.list()));
$("import").onclick = () => $("file").click();
$("file").onchange = async () => {
  const [file] = $("file").files;
  $("file").value = "";
  if (!file) return;
  try {
    const count = await conversations.importFrom(await file.text());
    $("announce").textContent = t("{n} conversations were added", { n: count });
  } catch (error) {
    await confirmed(t("{name} cannot be imported: {why}.", { name: file.name, why: t(error.message) }), t("Close"));
  }
  list();
};

/** The list is beside the chat where there is room, and over it where there is not. */
function showList(shown) {
  document.body.classList.toggle("with-list", shown);
  $("show-list").setAttribute("aria-expanded", shown);
}
$("show-list").onclick = () => showList(!document.body.classList.contains("with-list"));
$("chat").addEventListener("click", () => document.body.classList.contains("with-list") && showList(false));

// An answer that comes while the page is left is kept as far as it came.
addEventListener("pagehide", () => {
  if (!state.abort) return;
  state.conversation.messages.at(-1).broken = true;
  conversations.saveAtOnce(state.conversation);
});
// What another tab says in the conversation that stands here stands here too, unless an answer is awaited or a message edited.
const isFree = (id) => id === state.conversation.id && !state.abort && state.editing < 0;
conversations.listen(async (id) => {
  if (isFree(id)) {
    const conversation = await conversations.load(id);
    if (isFree(id)) {
      const { scrollTop } = $("chat"), stick = nearEnd();
      state.conversation = conversation;
      render();
      if (!stick) $("chat").scrollTop = scrollTop;
    }
  }
  list();
});
document.addEventListener("visibilitychange", () => { if (document.hidden && state.conversation.messages.length) conversations.save(state.conversation); });

// ---- begin ----

speak(document.body);
settle({});
await conversations.open();
const last = conversations.list().find(({ id }) => id === stored("last", ""));
const before = last && await conversations.load(last.id);
// Who was quick has said something already.
if (before && !state.conversation.messages.length) state.conversation = before;
welcome();
list();
render();
const isNarrow = matchMedia("(max-width: 64rem)").matches;
openPanel(isNarrow || stored("panel", "live") === "" ? null : "live");
watch();
