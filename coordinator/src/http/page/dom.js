// Elements, in as few words as they take. Text is only ever set as text, never as HTML.

export const $ = (id) => document.getElementById(id);

export const make = (tag, props = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    // Attributes that have no property of their own.
    if (name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
};

export const button = (textContent, onclick, props = {}) => make("button", { type: "button", textContent, onclick, ...props });
export const code = (textContent) => make("code", { textContent });
export const cell = (textContent, className = "num") => make("td", { textContent, className });

/** What this browser keeps for this page; nothing where it keeps nothing. */
export const stored = (name, fallback) => {
  try { return JSON.parse(localStorage.getItem(name)) ?? fallback; } catch { return fallback; }
};
export const store = (name, value) => {
  try { localStorage.setItem(name, JSON.stringify(value)); } catch { /* private mode, or full */ }
};

export const bytes = (n) => (n >= 1e9 ? `${(n / 1e9).toFixed(2)} GB` : n >= 1e6 ? `${(n / 1e6).toFixed(1)} MB` : `${Math.round(n / 1e3)} kB`);
export const percent = (p) => (p >= 0.1 ? `${(p * 100).toFixed(0)} %` : p >= 0.001 ? `${(p * 100).toFixed(1)} %` : "< 0.1 %");
/** White space and nothing, so that they are seen. */
export const visible = (text) => text.replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "⇥") || "∅";

/** Asks with a dialog; resolves to whether the answer was yes. */
export function confirmed(question, yes) {
  const dialog = $("sure");
  $("sure-question").textContent = question;
  $("sure-yes").textContent = yes;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => { dialog.onclose = () => resolve(dialog.returnValue === "yes"); });
}

/** Gives the browser a file to save. */
export function download(name, text, type = "application/json") {
  const url = URL.createObjectURL(new Blob([text], { type }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
