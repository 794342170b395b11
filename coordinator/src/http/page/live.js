// The live view: ranks as GET /api/cluster tells of them, and the KV blocks as the entries of GET /api/steps changed them, replayed
// slowly: an answer of the demo model takes less time than a glance.
//
// `base` is who held what before the first entry; the state after entry n is base changed by the first n. `at` is how many are shown.

import { $, make, bytes } from "./dom.js";
import { t } from "./words.js";

/** Entries that are kept, and how many of them the strip shows. */
const MAX_ENTRIES = 600, STRIP = 130;
/** Steps a second of the replay, and how long a backlog may take. */
const RATES = [2, 8, 30], BACKLOG_S = 12;
/** Squares of the pool that are drawn, at most. */
const MOST_SQUARES = 1200;
/** Sequences, and blocks of each, that are listed. */
const LISTED = 10, LISTED_BLOCKS = 48;

// Texts have warm colours, ranks cold ones, so that nobody takes the one for the other.
const textHue = (id) => 20 + ((id * 137.5) % 125);
const rankHue = (rank) => 205 + ((rank * 53) % 110);

let base = empty(), entries = [], next = 0, at = 0, playing = true, rate = 8, last = 0, cluster = null;
/** The state after `at` entries, or null where it must be made again. */
let state = null;

function empty() { return { sequences: new Map(), idle: new Set(), lost: new Set(), top: -1 }; }

function apply(state, entry) {
  switch (entry.kind) {
    case "step":
      for (const part of entry.parts) {
        const known = state.sequences.get(part.id);
        // Who starts behind its beginning has found blocks of another.
        const found = known ? known.found : Math.floor(part.start / cluster.block_tokens);
        const blocks = [...(known?.blocks ?? []), ...part.blocks];
        state.sequences.set(part.id, { id: part.id, prompt: part.prompt_tokens, tokens: part.tokens, computed: part.end, blocks, found });
        for (const block of part.blocks) { state.idle.delete(block); state.top = Math.max(state.top, block); }
      }
      break;
    case "left":
      entry.sequences.forEach((id) => state.sequences.delete(id));
      entry.idle.forEach((block) => state.idle.add(block));
      break;
    case "lost": entry.ranks.forEach((rank) => state.lost.add(rank)); break;
    case "back": state.lost.clear(); break;
    case "blank": state.sequences.clear(); state.idle.clear(); break;
  }
}

function seeded({ sequences, blocks_idle }) {
  const state = empty();
  for (const one of sequences) {
    state.sequences.set(one.id, { id: one.id, prompt: one.prompt_tokens, tokens: one.tokens, computed: one.computed, blocks: one.blocks, found: 0 });
    state.top = Math.max(state.top, ...one.blocks);
  }
  for (const block of blocks_idle) { state.idle.add(block); state.top = Math.max(state.top, block); }
  return state;
}

const copied = ({ sequences, idle, lost, top }) => ({ sequences: new Map(sequences), idle: new Set(idle), lost: new Set(lost), top });

/** Moves what is shown to after entry `to`. */
function seek(to) {
  to = Math.max(0, Math.min(entries.length, to));
  if (!state || to < at) {
    state = copied(base);
    at = 0;
  }
  while (at < to) apply(state, entries[at++]);
}

export const live = {
  /** Which entries to ask for. */
  next: () => next,
  isShown: () => !$("panel").hidden && !$("live").hidden,

  /** Takes what /api/steps answered. */
  take({ before, entries: fresh, next: from }) {
    if (before) {
      base = seeded(before);
      entries = [];
      state = null;
      at = 0;
    }
    const isFirst = next === 0;
    next = from;
    entries.push(...fresh);
    while (entries.length > MAX_ENTRIES) {
      apply(base, entries.shift());
      if (at > 0) at--; else state = null;
    }
    // What was before the page came is there to be looked at, and not waited for.
    if (isFirst) seek(entries.length);
    if (fresh.length || isFirst) draw();
  },

  /** Takes what /api/cluster answered; `null` where nothing did. */
  tell(answer, why = "") {
    $("stale").hidden = Boolean(answer);
    $("live").classList.toggle("stale", !answer);
    $("live").classList.toggle("unknown", !answer && !cluster);
    if (!answer) {
      if (cluster) $("stale").textContent = t("{why}. What is shown below is how it was at {time}.", { why, time: new Date(cluster.seen).toLocaleTimeString() });
      else $("stale").textContent = `${why}.`;
      return;
    }
    cluster = { ...answer, seen: Date.now() };
    ranks(cluster);
    draw();
  },

  draw: () => draw(),
};

// ---- ranks ----

const knownRestarts = [];
const duration = (s) => (s >= 10 ? `${s.toFixed(0)} s` : s >= 1 ? `${s.toFixed(1)} s` : `${Math.round(s * 1000)} ms`);
let drawnRanks = "";

function ranks(cluster) {
  const key = JSON.stringify([cluster.ranks, document.documentElement.lang]);
  if (key === drawnRanks) return;
  drawnRanks = key;
  const share = (name, [from, to], whole) => {
    const fill = make("i", { style: `--from: ${(from / whole) * 100}%; --size: ${((to - from) / whole) * 100}%` });
    return make("div", { className: "share", title: t("{name} {from} to {to} of {whole}", { name, from, to, whole }) }, make("span", { textContent: name }), make("b", {}, fill));
  };
  const card = (rank) => {
    const [from, to] = rank.heads;
    const cells = Array.from({ length: cluster.n_head }, (_, head) => make("i", { className: head >= from && head < to ? "own" : "" }));
    const heads = make("div", { className: "heads", title: t("heads {from} to {to} of {whole}", { from, to: to - 1, whole: cluster.n_head }) }, ...cells);
    // Query heads in groups read the same keys and values, which may stand on several ranks.
    const read = cluster.n_kv_head < cluster.n_head ? t(" on {n} of {whole} of keys and values", { n: rank.kv_heads[1] - rank.kv_heads[0], whole: cluster.n_kv_head }) : "";
    const title = make("p", {}, make("strong", { textContent: `${t("Rank")} ${rank.rank}` }), ` · ${t("{n} of {whole} heads", { n: to - from, whole: cluster.n_head })}${read} · ${bytes(rank.weight_bytes)}`);
    const life = rank.lost ? t("lost: another takes its place")
      : rank.restarts ? (rank.restarts === 1 ? t("lost once, last back after {s}", { s: duration(rank.back_after_s) }) : t("lost {n} times, last back after {s}", { n: rank.restarts, s: duration(rank.back_after_s) })) : "";
    // Drawn anew as it changes: who has just come back shows it for a moment.
    const isBack = knownRestarts[rank.rank] < rank.restarts;
    knownRestarts[rank.rank] = rank.restarts;
    return make("div", { className: `rank${rank.lost ? " lost" : isBack ? " back" : ""}`, style: `--hue: ${rankHue(rank.rank)}` },
      title, heads, make("div", { className: "shares" }, share(t("FFN"), rank.ffn, cluster.n_inner), share(t("vocabulary"), rank.vocab, cluster.vocab_size)),
      ...(life ? [make("p", { className: "life", textContent: life })] : []));
  };
  $("ranks").replaceChildren(...cluster.ranks.map(card));
}

// ---- the replay ----

function told(entry) {
  switch (entry?.kind) {
    case "step": {
      const tokens = entry.parts.reduce((sum, part) => sum + part.end - part.start, 0);
      const reads = entry.parts.filter((part) => part.end - part.start > 1).length;
      return t("Step {n}: {texts} texts, {tokens} tokens, {ms} ms", { n: entry.step, texts: entry.parts.length, tokens, ms: entry.ms.toFixed(2) }) +
        (reads ? t("; {n} of them read their prompt", { n: reads }) : "");
    }
    case "left": return t("Text {ids} has ended or given way: {n} of its blocks are kept", { ids: entry.sequences.map((id) => `#${id}`).join(", "), n: entry.idle.length });
    case "lost": return t("Rank {ids} is lost: its part of every block is out of reach", { ids: entry.ranks.join(", ") });
    case "back": return t("Another rank is in its place after {s}, and every text goes on", { s: duration(entry.after_s) });
    case "blank": return t("The pools are blank: every text is computed again");
    default: return t("Nothing has been computed yet.");
  }
}

/** The colour that a name has in the theme of now. */
function colour(name) {
  const probe = $("blocks-note");
  probe.style.color = `var(${name})`;
  const value = getComputedStyle(probe).color;
  probe.style.color = "";
  return value;
}

function sized(canvas, height) {
  const width = canvas.clientWidth || 280, scale = devicePixelRatio || 1;
  canvas.width = width * scale;
  canvas.height = height * scale;
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  return [pen, width];
}

function draw() {
  if (!cluster || !live.isShown()) return;
  if (!state) seek(at || entries.length);
  $("scrub").max = entries.length;
  $("scrub").value = at;
  $("scrub").setAttribute("aria-valuetext", $("happening").textContent = told(entries[at - 1]));
  $("play").textContent = playing ? "❚❚" : "▶";
  $("play").ariaLabel = $("play").title = playing ? t("Pause") : t("Play");
  strip();
  blocks();
}

/** A bar a step, as high as it has tokens, of those around the one that is shown. */
function strip() {
  const [pen, width] = sized($("strip"), 34);
  const end = Math.min(entries.length, Math.max(at + Math.floor(STRIP / 2), STRIP)), from = Math.max(0, end - STRIP);
  const step = width / STRIP;
  const [soft, accent, bad, good] = ["--line", "--accent", "--bad", "--good"].map(colour);
  entries.slice(from, end).forEach((entry, i) => {
    const isShown = from + i < at;
    const mark = { lost: bad, back: good, blank: bad }[entry.kind];
    const tokens = entry.kind === "step" ? entry.parts.reduce((sum, part) => sum + part.end - part.start, 0) : 0;
    const height = mark ? 30 : tokens ? 4 + Math.min(26, Math.log2(tokens + 1) * 3.2) : 0;
    pen.fillStyle = mark ?? (isShown ? accent : soft);
    pen.fillRect(i * step, 32 - height, Math.max(1, step - 0.7), height);
  });
  pen.fillStyle = colour("--ink");
  pen.fillRect(Math.max(0, (at - from) * step - 1), 0, 1, 34);
  $("strip").ariaLabel = t("{n} steps and other events, {at} of them shown; height: tokens", { n: entries.length, at });
}

/** Who holds a block, and how full it is. */
function holders() {
  const held = new Map();
  for (const sequence of state.sequences.values()) {
    sequence.blocks.forEach((block, i) => {
      const filled = Math.max(0, Math.min(1, (sequence.computed - i * cluster.block_tokens) / cluster.block_tokens));
      const holder = held.get(block) ?? { ids: [], filled, from: i * cluster.block_tokens };
      holder.ids.push(sequence.id);
      held.set(block, holder);
    });
  }
  return held;
}

let placed = { side: 1, columns: 1, squares: 0, per: 1, held: new Map() };

/** What stands in a square: how much of it each text fills, how many of its blocks are held, by several, and kept. */
function inSquare(square, { per, held }) {
  const from = square * per, to = Math.min(cluster.blocks_total, from + per);
  const all = { from, to, fills: new Map(), ids: new Set(), held: 0, shared: 0, kept: 0 };
  for (let block = from; block < to; block++) {
    const holder = held.get(block);
    if (!holder) {
      all.kept += state.idle.has(block);
      continue;
    }
    const [first] = holder.ids;
    all.fills.set(first, (all.fills.get(first) ?? 0) + holder.filled);
    holder.ids.forEach((id) => all.ids.add(id));
    all.held++;
    all.shared += holder.ids.length > 1;
  }
  return all;
}

/** The pool as squares, as far as it was ever used: large ones while that is little, of several blocks where it is too much to see. */
function blocks() {
  const canvas = $("blocks"), total = cluster.blocks_total;
  const width = canvas.clientWidth || 280;
  const used = state.top + 1;
  const per = 2 ** Math.max(0, Math.ceil(Math.log2(used / MOST_SQUARES)));
  const needed = Math.ceil(used / per);
  const side = needed <= 80 ? 22 : needed <= 320 ? 14 : 9;
  const columns = Math.max(1, Math.floor(width / side));
  // Whole rows, and at least two.
  const squares = Math.min(Math.ceil(total / per), Math.max(2, Math.ceil(needed / columns)) * columns);
  const rows = Math.ceil(squares / columns);
  const [pen] = sized(canvas, rows * side);
  const [blank, kept, ink, bad] = ["--empty-block", "--kept-block", "--ink", "--bad"].map(colour);
  const held = holders();
  placed = { side, columns, squares, per, held };
  const size = side - 2;
  let shared = 0;
  for (let square = 0; square < squares; square++) {
    const x = (square % columns) * side, y = Math.floor(square / columns) * side;
    const all = inSquare(square, placed);
    shared += all.shared;
    pen.fillStyle = blank;
    pen.fillRect(x, y, size, size);
    // From the bottom: what each text fills, then what is kept.
    const layers = [...[...all.fills].map(([id, filled]) => [`oklch(.68 .14 ${textHue(id)})`, filled]), [kept, all.kept]];
    let bottom = y + size;
    for (const [fill, filled] of layers.filter(([, filled]) => filled > 0)) {
      const height = Math.min(bottom - y, Math.max(1, size * filled / per));
      bottom -= height;
      pen.fillStyle = fill;
      pen.fillRect(x, bottom, size, height);
    }
    if (all.shared) {
      pen.strokeStyle = ink;
      pen.lineWidth = 1.5;
      pen.strokeRect(x + 0.5, y + 0.5, size - 1, size - 1);
    }
  }
  if (state.lost.size) {
    // Every rank has its part of every block, so without one there is none.
    pen.strokeStyle = bad;
    pen.globalAlpha = 0.5;
    pen.beginPath();
    for (let x = -rows * side; x < width; x += 7) { pen.moveTo(x, rows * side); pen.lineTo(x + rows * side, 0); }
    pen.stroke();
  }
  const note = t("{held} of {total} blocks of {positions} positions are held", { held: held.size, total, positions: cluster.block_tokens }) +
    (shared ? t(", {n} of them shared", { n: shared }) : "") + (state.idle.size ? t("; {n} are kept for prompts that begin alike", { n: state.idle.size }) : "") +
    (per > 1 ? t("; a square is {n} blocks side by side", { n: per }) : "") +
    (total > squares * per ? t("; the {n} that were never needed are not drawn", { n: total - squares * per }) : "") + t(".");
  $("blocks-note").textContent = canvas.ariaLabel = note;
  sequences(held);
}

function sequences(held) {
  const all = [...state.sequences.values()];
  const row = (one) => {
    const from = Math.max(0, one.blocks.length - LISTED_BLOCKS);
    const squares = one.blocks.slice(from).map((block) => {
      const { ids, filled } = held.get(block);
      return make("i", { className: ids.length > 1 ? "held shared" : "held", style: `--fill: ${filled * 100}%`, title: `#${block}` });
    });
    const words = t("#{id}: {prompt} + {own} tokens", { id: one.id, prompt: one.prompt, own: one.tokens - one.prompt }) + (one.found ? t(", {n} blocks found", { n: one.found }) : "");
    return make("li", { style: `--hue: ${textHue(one.id)}` }, make("span", { textContent: words }), make("div", { className: "squares" }, from ? "… " : "", ...squares));
  };
  const rest = all.length > LISTED ? [make("li", { textContent: t("and {n} more", { n: all.length - LISTED }) })] : [];
  $("sequences").replaceChildren(...all.slice(0, LISTED).map(row), ...rest);
}

/** What a square is, in words. */
function named(square) {
  const { from, to, ids, held, kept } = inSquare(square, placed);
  const texts = [...ids].slice(0, LISTED).map((id) => `#${id}`).join(", ") + (ids.size > LISTED ? ", …" : "");
  if (placed.per > 1) return t("blocks {from} to {to}: {held} held by {ids}, {kept} kept, {blank} blank", { from, to: to - 1, held, ids: texts || "–", kept, blank: to - from - held - kept });
  const holder = placed.held.get(from);
  return holder
    ? t("block {n}: from position {from} of text {ids}, {p} % full", { n: from, from: holder.from, ids: texts, p: Math.round(holder.filled * 100) })
    : kept ? t("block {n}: kept, nobody holds it", { n: from }) : t("block {n}: blank", { n: from });
}
$("blocks").addEventListener("pointermove", (event) => {
  const { side, columns, squares } = placed;
  const square = Math.floor(event.offsetY / side) * columns + Math.floor(event.offsetX / side);
  $("blocks").title = state && square < squares ? named(square) : "";
});
$("scrub").oninput = () => { playing = false; seek(Number($("scrub").value)); draw(); };
$("play").onclick = () => {
  // At the end there is nothing to go on with: once more from where the strip begins.
  if (!playing && at === entries.length) seek(Math.max(0, at - STRIP));
  playing = !playing;
  draw();
};
$("rate").replaceChildren(...RATES.map((each) => make("option", { value: each, textContent: `${each}/s`, selected: each === rate })));
$("rate").onchange = () => { rate = Number($("rate").value); };

let due = 0;
function tick(now) {
  const passed = Math.min(0.25, (now - last) / 1000);
  last = now;
  if (playing && at < entries.length && live.isShown() && cluster) {
    const left = entries.length - at;
    due += passed * Math.max(rate, left / BACKLOG_S);
    const steps = Math.floor(due);
    if (steps > 0) {
      due -= steps;
      if (!state) seek(at);
      seek(at + steps);
      draw();
    }
  }
  requestAnimationFrame(tick);
}
requestAnimationFrame(tick);

/** The pace of the last answer. */
export function speed(start, times) {
  const span = times.length ? (times.at(-1) - times[0]) / 1000 : 0;
  const now = span > 0 ? (times.length - 1) / span : null;
  $("speed").textContent = now ? now.toFixed(now < 100 ? 1 : 0) : "–";
  if (times.length < 3 || !now) return;
  $("timing").textContent = t("first token after {first} ms, then {each} ms each", { first: Math.round(times[0] - start), each: (1000 / now).toFixed(1) });
  // Each point is the rate over the four tokens before it.
  const rates = times.slice(1).map((time, i) => (Math.min(i + 1, 4) * 1000) / Math.max(0.1, time - times[Math.max(0, i - 3)]));
  const top = Math.max(...rates);
  const points = rates.map((each, i) => `${(i / Math.max(1, rates.length - 1)) * 240},${34 - (each / top) * 30}`);
  $("pace").firstElementChild.setAttribute("points", points.join(" "));
}
