// What there is to say of a token: shortly where the pointer is, wholly in the panel, which covers nothing.

import { $, make, code, cell, percent, visible } from "./dom.js";
import { t } from "./words.js";

const bar = (share) => make("td", { className: "bar" }, make("i", { style: `--p: ${Math.min(1, share) * 100}%` }));

/** A piece of an answer, or what is shown of it: it may be cut where lines and marks are. */
export function pieceSpan(piece, text) {
  const sure = piece.tokens.reduce((product, token) => product * token.p, 1);
  return make("span", { className: "piece", piece, style: `--doubt: ${1 - sure}` }, text);
}

/** Marks all spans of a piece. */
function mark(piece) {
  document.querySelectorAll(".piece.shown").forEach((one) => one.classList.remove("shown"));
  if (piece) document.querySelectorAll(".piece").forEach((one) => one.classList.toggle("shown", one.piece === piece));
}

/** The little table at a token, or none. */
export function hover(span) {
  const box = $("hover");
  const tokens = span?.piece?.tokens ?? [];
  mark(tokens.length ? span.piece : null);
  if (!tokens.length) return box.hidePopover();
  box.replaceChildren(...tokens.map(shortTable));
  if (span.piece.explain?.length) box.append(make("p", { className: "note", textContent: t("click: why, and what it took") }));
  box.showPopover();
  const at = span.getClientRects()[0], size = box.getBoundingClientRect();
  box.style.left = `${Math.min(Math.max(8, at.left), innerWidth - size.width - 8)}px`;
  box.style.top = `${at.bottom + 6 + size.height < innerHeight ? at.bottom + 6 : Math.max(8, at.top - size.height - 6)}px`;
}

function shortTable(token) {
  const rows = token.top.some(([text]) => text === token.t) ? token.top : [...token.top, [token.t, token.p]];
  const row = ([text, p]) =>
    make("tr", { className: text === token.t ? "chosen" : "" }, make("td", {}, code(visible(text))), bar(p), cell(percent(p)));
  const rank = token.top.findIndex(([text]) => text === token.t);
  const nth = ["the most likely token", "the second choice", "the third choice", "the fourth choice", "the fifth choice"];
  return make("table", {}, make("caption", { textContent: t(nth[rank] ?? "not among the first five") }), make("tbody", {}, ...rows.map(row)));
}

/** Everything about a piece, in the panel. */
export function explain(piece) {
  const explained = piece.explain ?? [];
  const whole = explained.length
    ? explained.map(explanation)
    : [make("p", { className: "note", textContent: t("The chain and the step were not kept beyond the visit in which this was answered.") }), ...piece.tokens.map(shortTable)];
  $("token").replaceChildren(...whole);
}

const table = (caption, head, rows) => make("table", {}, make("caption", { textContent: caption }),
  make("thead", {}, make("tr", {}, ...head.map((textContent) => (textContent ? make("th", { textContent }) : make("td"))))), make("tbody", {}, ...rows));

/** One token: alternatives, what the sampling chain did, and where the time of its step went, rank by rank. */
function explanation({ token, id, forced, alternatives, chain, step }) {
  const head = make("h2", {}, t("Token"), " ", code(visible(token)));
  if (forced) return make("section", {}, head, make("p", { className: "note", textContent: t("Not drawn: a result of the calculator.") }));
  const choices = alternatives.map((a) => make("tr", { className: `${a.id === id ? "chosen" : ""} ${a.removed_by ? "removed" : ""}` },
    make("td", {}, code(visible(a.token))), cell(percent(Math.exp(a.logprob))),
    cell(a.removed_by ? a.removed_by : percent(a.probability)), bar(a.probability)));
  const processors = chain.map((p) => make("tr", {},
    cell([p.processor, p.value === null ? "" : Number(p.value.toPrecision(4))].join(" "), ""),
    cell(p.removed ? t("{n} tokens, {p}", { n: p.removed, p: percent(p.removed_mass) }) : p.changed ? t("{n} logits changed", { n: p.changed }) : t("nothing"))));
  return make("section", {}, head,
    table(t("Alternatives"), [t("token"), t("model"), t("drawn"), ""], choices),
    processors.length ? table(t("What the sampling chain removed"), [t("processor"), t("removed")], processors)
      : make("p", { className: "note", textContent: t("Every processor is neutral.") }),
    stepTable(step));
}

/** Where the time of a step went: by what kind of work, and below that stage by stage. */
function stepTable(step) {
  if (!step.ranks[0]) return "";
  const sum = (rank, kind) => rank.stages.filter((one) => one.kind === kind).reduce((sum, one) => sum + one.ms, 0);
  // The waiting for other ranks is a part of the reductions, and counted once.
  const kinds = ["product", "attention", "rows", "reduction"].filter((kind) => step.ranks.some((rank) => sum(rank, kind) > 0)).map((kind) => ({
    name: t(`kind ${kind}`), kind, of: step.ranks.map((rank) => {
      const waits = kind === "reduction" ? Math.min(sum(rank, "waiting"), sum(rank, kind)) : 0;
      return [sum(rank, kind) - waits, waits];
    }),
  }));
  const known = (i) => kinds.reduce((sum, { of }) => sum + of[i][0] + of[i][1], 0);
  kinds.push({ name: t("the rest"), kind: "rest", of: step.ranks.map(({ ms }, i) => [Math.max(0, ms - known(i)), 0]) });
  const stages = step.ranks[0].stages.filter(({ kind }) => kind !== "waiting").map(({ stage, kind }) => ({
    name: kind === "reduction" ? t("all-reduce: {stage}", { stage }) : stage, kind,
    of: step.ranks.map((rank) => [rank.stages.find((one) => one.kind === kind && one.stage === stage)?.ms ?? 0, 0]),
  }));
  const caption = t("Step {n}: {sequences} texts, {tokens} tokens, {ms} ms", { n: step.number, sequences: step.sequences, tokens: step.tokens, ms: step.ms.toFixed(2) });
  const note = t("Milliseconds on each rank, whose number stands before its bar; the pale part, behind the +, is waiting for other ranks. Each sums to what the rank needed: {all}.",
    { all: step.ranks.map(({ ms }) => ms.toFixed(3)).join(", ") });
  return make("div", {}, bars(caption, kinds), make("p", { className: "note", textContent: note }),
    make("details", {}, make("summary", { textContent: t("Stage by stage") }), bars("", stages)));
}

/** A row for each name, a bar in it for each rank, all in one scale. */
function bars(caption, rows) {
  const most = Math.max(...rows.flatMap(({ of }) => of.map(([work, wait]) => work + wait)), 1e-9);
  const bar = ([work, wait], rank) => make("div", { title: t("rank {n}: {ms} ms", { n: rank, ms: (work + wait).toFixed(3) }) },
    make("b", { textContent: rank }), make("i", { style: `--p: ${(work / most) * 100}%` }), make("i", { className: "waits", style: `--p: ${(wait / most) * 100}%` }),
    make("span", { textContent: wait > 0 ? `${work.toFixed(3)} + ${wait.toFixed(3)}` : work.toFixed(3) }));
  const row = ({ name, kind, of }) => make("tr", { className: kind },
    make("th", { scope: "row", textContent: name }), make("td", { className: "bars" }, ...of.map(bar)));
  return make("table", { className: "step" }, ...(caption ? [make("caption", { textContent: caption })] : []), make("tbody", {}, ...rows.map(row)));
}
