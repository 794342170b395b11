// The chapters of docs/learn, as this build has them, in the reader's language.

import { $, make, store } from "./dom.js";
import { show } from "./markdown.js";
import { t, language, speak } from "./words.js";

const CHAPTERS = [["README", "Lessons"], ["1-understand", "Understand"], ["2-optimise", "Optimise"], ["3-serve", "Serve"], ["4-build", "Build it"]];

const chosen = CHAPTERS.some(([name]) => name === location.search.slice(1)) ? location.search.slice(1) : "README";
const inLanguage = (name) => (language() === "zh" ? `${name}.zh-CN.md` : `${name}.md`);

/** Where a link of a chapter leads here: to another chapter, out, or nowhere. */
function place(href, isPicture) {
  if (isPicture) return /^[\w-]+\.svg$/.test(href) ? `assets/${href}` : null;
  const [, chapter, isChinese] = href.match(/^([\w-]+?)(\.zh-CN)?\.md$/) ?? [];
  const spoken = isChinese ? "zh" : "en";
  return chapter ? `learn?${chapter}${spoken === language() ? "" : `#${spoken}`}` : /^https?:/.test(href) ? href : null;
}

/** A link to the other language changes it for all pages. */
function changeLanguage() {
  if (!["#en", "#zh"].includes(location.hash)) return;
  store("language", location.hash.slice(1));
  location.replace(`learn${location.search}`);
}
changeLanguage();
addEventListener("hashchange", changeLanguage);

speak(document.body);
$("chapters").replaceChildren(...CHAPTERS.map(([name, title]) => {
  const link = make("a", { href: `learn?${name}`, textContent: t(title) });
  if (name === chosen) link.ariaCurrent = "page";
  return link;
}));
const response = await fetch(`assets/${inLanguage(chosen)}`);
// Marks say which command wrote what stands between them.
const text = (await response.text()).replace(/<!-- .*? -->/g, "");
show($("chapter"), text, [], null, place);
document.title = `NanoInfer: ${$("chapter").querySelector("h2")?.textContent ?? ""}`;
