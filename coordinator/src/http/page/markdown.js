// Markdown as elements, with each piece of the source found again in what is shown.
//
// `marked` tells what the source consists of; the elements are made here, of a few kinds, from text. So nothing that a model
// writes becomes HTML: its tags are shown as they are, its pictures are links, its links lead nowhere but to http, https and mail.
// What is nested deeper than anybody writes is shown as it is: a browser lays out elements by recursion.

import { marked } from "./marked.js";
import { make, button } from "./dom.js";
import { t } from "./words.js";

const MAX_DEPTH = 24;
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: "\"", apos: "'", nbsp: "\u00a0" };
const decoded = (text) => text.replace(/&(?:#(\d{1,6})|#x([\da-f]{1,5})|(\w{2,8}));/gi, (all, decimal, hex, name) =>
  decimal || hex ? String.fromCodePoint(Math.min(0x10ffff, parseInt(decimal ?? hex, decimal ? 10 : 16))) : Object.hasOwn(ENTITIES, name) ? ENTITIES[name] : all);

let highlighter;
/** Colours code once the highlighter, which only pages with code need, is there. */
async function highlight(element, language) {
  highlighter ??= import("./highlight.js").then((module) => module.default);
  const hljs = await highlighter.catch(() => null);
  if (!hljs?.getLanguage(language)) return;
  const html = hljs.highlight(element.textContent, { language, ignoreIllegals: true }).value;
  // It escapes what it is given; only its spans and their text are taken over all the same.
  const copy = (from) => [...from.childNodes].map((node) =>
    node.nodeType === Node.TEXT_NODE ? node.data : make("span", { className: node.className }, ...copy(node)));
  const spans = copy(new DOMParser().parseFromString(html, "text/html").body);
  element.replaceChildren(...spans);
  element.weave?.();
}

/** Where links and pictures of an answer lead: out of the page, or nowhere; a picture is a link. */
const outside = (href, isPicture) => (!isPicture && /^(https?:|mailto:)/i.test(href) ? href : null);
let place = outside;

function inline(tokens, depth = 0) {
  return (tokens ?? []).flatMap((token) => {
    if (depth > MAX_DEPTH) return token.raw;
    const inner = () => inline(token.tokens, depth + 1);
    switch (token.type) {
      case "strong": case "em": case "del": return make(token.type, {}, ...inner());
      case "codespan": return make("code", { textContent: token.text });
      case "br": return make("br");
      case "link": case "image": {
        const src = token.type === "image" && place(token.href, true);
        if (src) return make("img", { src, alt: token.text });
        const href = place(token.href, false);
        const text = token.type === "image" ? [`🖼 ${token.text}`] : inner();
        const leaves = /^\w+:/.test(href ?? "") ? { target: "_blank", rel: "noopener noreferrer nofollow" } : {};
        return href ? make("a", { href, ...leaves }, ...text) : text;
      }
      case "checkbox": return make("input", { type: "checkbox", checked: token.checked, disabled: true, ariaLabel: t("Done") });
      case "text": case "escape": return token.tokens ? inner() : decoded(token.text);
      default: return token.raw;
    }
  });
}

function block(token, depth = 0) {
  if (depth > MAX_DEPTH) return make("p", { textContent: token.raw });
  const inner = () => token.tokens.map((one) => block(one, depth + 1)).filter(Boolean);
  switch (token.type) {
    case "space": case "def": return null;
    case "heading": return make(`h${Math.min(6, token.depth + 1)}`, {}, ...inline(token.tokens));
    case "paragraph": return make("p", {}, ...inline(token.tokens));
    case "blockquote": return make("blockquote", {}, ...inner());
    case "hr": return make("hr");
    case "code": return codeBlock(token.text, token.lang?.match(/^[\w+#-]+/)?.[0].toLowerCase());
    case "list": {
      // The text of an item of a tight list is no paragraph.
      const part = (one) => (one.type === "text" ? make("span", {}, ...inline(one.tokens ?? [one])) : one.type === "checkbox" ? inline([one])[0] : block(one, depth + 1));
      const item = (one) => make("li", {}, ...one.tokens.map(part).filter(Boolean));
      return make(token.ordered ? "ol" : "ul", token.ordered && token.start !== 1 ? { start: token.start } : {}, ...token.items.map(item));
    }
    case "table": {
      // A head of nothing is none.
      const row = (tag, cells) => make("tr", {}, ...cells.map((one) => make(one.text ? tag : "td", { className: one.align ?? "" }, ...inline(one.tokens))));
      const table = make("table", {}, make("thead", {}, row("th", token.header)), make("tbody", {}, ...token.rows.map((cells) => row("td", cells))));
      return make("div", { className: "wide", tabIndex: 0, role: "group", ariaLabel: t("Table") }, table);
    }
    case "text": return make("p", {}, ...inline(token.tokens ?? [token]));
    default: return make("p", { textContent: token.raw });
  }
}

function codeBlock(text, language) {
  const inside = make("code", { textContent: text });
  if (language) inside.language = language;
  // Browsers have a clipboard for loopback and HTTPS only.
  const copy = navigator.clipboard ? [copyButton(() => text)] : [];
  return make("div", { className: "code" }, make("div", { className: "bar" }, make("span", { textContent: language ?? "" }), ...copy),
    make("pre", { tabIndex: 0 }, inside));
}

export function copyButton(text) {
  const copy = button(t("Copy"), async () => {
    await navigator.clipboard.writeText(text());
    copy.textContent = t("Copied");
    setTimeout(() => { copy.textContent = t("Copy"); }, 1500);
  });
  return copy;
}

/** Wraps the text in `root`, which was made of `source` from `at` on, in spans of the pieces that it came in. */
function weave(root, source, at, pieces, span) {
  if (!pieces.length) return;
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT, (node) =>
    node.parentElement.closest(".bar, .piece") ? NodeFilter.FILTER_REJECT : NodeFilter.FILTER_ACCEPT);
  const nodes = [];
  while (walker.nextNode()) nodes.push(walker.currentNode);
  let index = 0;
  for (const node of nodes) {
    const parts = [];
    // Marks and indents stand between lines, so each is looked for from the end of the one before.
    for (const line of node.data.split(/(?<=\n)/)) {
      const bare = line.replace(/\n$/, "");
      const found = source.indexOf(bare, at);
      at = found < 0 ? at : found;
      let done = 0;
      while (done < line.length) {
        while (index + 1 < pieces.length && pieces[index + 1].from <= at) index++;
        const end = pieces[index + 1]?.from ?? Infinity;
        const length = Math.max(1, Math.min(line.length - done, end - at));
        parts.push(span(pieces[index].piece, line.slice(done, done + length)));
        done += length;
        at += length;
      }
    }
    node.replaceWith(...parts);
  }
}

/** What a source consists of; one that is nested thousands deep, which the parser cannot take, of a text. */
function parsed(source) {
  try { return marked.lexer(source); } catch { return [{ type: "plain", raw: source }]; }
}

/**
 * Shows `source` in `container`. What of it is as it was at the last call stays: an answer grows at its end.
 * `pieces` are {from, piece}, in their order; `span(piece, text)` makes the element of one; `where(href, isPicture)` says where a
 * link leads.
 */
export function show(container, source, pieces = [], span = null, where = outside) {
  place = where;
  let at = 0;
  const blocks = [];
  for (const token of parsed(source)) {
    if (token.type !== "space" && token.type !== "def") blocks.push({ token, at });
    at += token.raw.length;
  }
  const old = [...container.children];
  blocks.forEach(({ token, at }, i) => {
    const key = `${at}:${token.raw}`;
    // The last may have had fewer pieces; what stands before it is settled.
    if (old[i]?.key === key && i < blocks.length - 1) return;
    const element = block(token);
    element.key = key;
    const withPieces = (root) => weave(root, source, at, pieces, span);
    withPieces(element);
    for (const inside of element.querySelectorAll("code")) {
      if (!inside.language) continue;
      if (span) inside.weave = () => withPieces(inside);
      highlight(inside, inside.language);
    }
    if (old[i]) old[i].replaceWith(element);
    else container.append(element);
  });
  old.slice(blocks.length).forEach((element) => element.remove());
}
