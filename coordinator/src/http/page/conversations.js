// The conversations of this browser, in its IndexedDB: texts in one store, their tokens, which are many times as much, in another.
//
// A conversation is {id, title, system, created, changed, messages}; a message {role, content, reasoning_content?, stats?, error?,
// warnings?, pieces?}. Where the browser keeps nothing (private windows, a full disk), they live until the page is left.
// What was not yet written when the page is left goes through localStorage, which writes at once. Tabs tell one another what they wrote.

import { stored, store } from "./dom.js";

const FORMAT = "nanoinfer-conversations";
const known = new Map();
const database = new Promise((resolve) => {
  try {
    const opening = indexedDB.open("nanoinfer", 1);
    opening.onupgradeneeded = () => ["texts", "tokens"].forEach((name) => opening.result.createObjectStore(name, { keyPath: "id" }));
    opening.onsuccess = () => resolve(opening.result);
    opening.onerror = () => resolve(null);
  } catch { resolve(null); }
});

const tabs = new BroadcastChannel("nanoinfer-conversations");
let isKept = true;

/** Whether what was saved last is kept beyond this visit. */
export const keeps = () => isKept;

/** What the last request of `work` brings, once all of it is written: that a disk is full is told only then. */
async function inStores(names, mode, work) {
  const opened = await database;
  if (!opened) throw new Error("this browser keeps nothing");
  const transaction = opened.transaction(names, mode);
  const request = work(...names.map((name) => transaction.objectStore(name)));
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(request.result);
    transaction.onabort = () => reject(transaction.error);
  });
}

/** The same for writing; never fails, but notes whether it did. */
async function write(id, work) {
  try {
    await inStores(["texts", "tokens"], "readwrite", work);
    isKept = true;
    tabs.postMessage(id);
  } catch { isKept = false; }
}

/** Reads what there is; to be awaited before anything else. */
export async function open() {
  const texts = await inStores(["texts"], "readonly", (store) => store.getAll()).catch(() => []);
  for (const conversation of texts) known.set(conversation.id, conversation);
  const leftover = stored("unwritten", null);
  if (!Array.isArray(leftover?.messages)) return;
  await save(leftover);
  if (isKept) localStorage.removeItem("unwritten");
}

/** Calls `changed(id)` after another tab has changed a conversation, or removed it: what is known here is then what is known there. */
export function listen(changed) {
  tabs.onmessage = async ({ data: id }) => {
    const text = await inStores(["texts"], "readonly", (store) => store.get(id)).catch(() => null);
    if (text) known.set(id, text);
    else known.delete(id);
    changed(id);
  };
}

/** All, the last changed first; those in which every word of `query` is found. */
export function list(query = "") {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  const text = ({ title, messages }) => [title, ...messages.map((message) => message.content)].join("\n").toLowerCase();
  const found = [...known.values()].filter((one) => words.every((word) => text(one).includes(word)));
  return found.sort((a, b) => b.changed - a.changed);
}

export function begin(system = "") {
  const now = Date.now();
  return { id: crypto.randomUUID?.() ?? `${now}-${Math.random()}`, title: "", system, created: now, changed: now, messages: [] };
}

/** With the tokens of its answers; a new one where there is none of this id. */
export async function load(id) {
  if (!known.has(id)) return begin();
  const conversation = structuredClone(known.get(id));
  const tokens = await inStores(["tokens"], "readonly", (store) => store.get(id)).catch(() => null);
  tokens?.pieces.forEach((pieces, i) => { if (pieces && conversation.messages[i]) conversation.messages[i].pieces = pieces; });
  return conversation;
}

const slim = ({ text, thinks, calculations, tokens }) => ({ text, thinks, calculations, tokens });
/** Explanations are left out: they are a hundred times the text, and kept until the page is left. */
const pieces = (conversation) => conversation.messages.map((message) => message.pieces?.map(slim) ?? null);
const texts = (conversation) => ({ ...conversation, messages: conversation.messages.map(({ pieces, ...message }) => message) });

export async function save(conversation) {
  if (!conversation.messages.length && !known.has(conversation.id)) return;
  known.set(conversation.id, structuredClone(texts(conversation)));
  await write(conversation.id, (first, second) => {
    first.put(known.get(conversation.id));
    return second.put({ id: conversation.id, pieces: pieces(conversation) });
  });
}

/** For a page that is being left in the middle of an answer. */
export function saveAtOnce(conversation) {
  const messages = conversation.messages.map((message) => ({ ...message, pieces: message.pieces?.map(slim) }));
  store("unwritten", { ...conversation, messages });
}

export async function remove(id) {
  known.delete(id);
  await write(id, (first, second) => {
    first.delete(id);
    return second.delete(id);
  });
}

/** As a file that `importFrom` reads. */
export function exported(conversations) {
  const message = ({ role, content, reasoning_content }) => ({ role, content, ...(reasoning_content && { reasoning_content }) });
  const one = ({ title, system, created, changed, messages }) => ({ title, system, created, changed, messages: messages.map(message) });
  return JSON.stringify({ format: FORMAT, version: 1, conversations: conversations.map(one) }, null, 2);
}

/** Adds the conversations of a file of ours, or the one that a list of OpenAI's messages is; tells how many. Throws where it is neither. */
export async function importFrom(text) {
  let file;
  try { file = JSON.parse(text); } catch { throw new Error("this file is no JSON"); }
  const given = file?.format === FORMAT ? file.conversations : [{ messages: file?.messages ?? file }];
  const isMessage = (one) => ["user", "assistant", "system"].includes(one?.role) && typeof one.content === "string";
  if (!Array.isArray(given) || !given.every((one) => Array.isArray(one?.messages) && one.messages.length && one.messages.every(isMessage))) {
    throw new Error("this file holds no conversations");
  }
  for (const { title, system, created, changed, messages } of given) {
    const instruction = messages.find((message) => message.role === "system")?.content;
    const turns = messages.filter((message) => message.role !== "system")
      .map(({ role, content, reasoning_content }) => ({ role, content, ...(typeof reasoning_content === "string" && { reasoning_content }) }));
    const fresh = begin(typeof system === "string" ? system : instruction ?? "");
    await save({ ...fresh, title: titled({ title, messages: turns }), created: Number(created) || fresh.created, changed: Number(changed) || fresh.changed, messages: turns });
  }
  return given.length;
}

/** What a conversation is listed under: its title, or how it begins. */
export function titled({ title, messages }) {
  if (typeof title === "string" && title) return title.slice(0, 200);
  const first = messages.find((message) => message.role === "user")?.content.trim().split("\n")[0] ?? "";
  return first.length > 60 ? `${first.slice(0, 59)}…` : first;
}
