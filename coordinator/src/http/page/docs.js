// Draws openapi.json: a section for each tag, and in it for each route what it is asked, an example to try, its fields and answers.
// Order is the document's: of sections, of routes, of fields, where required ones come first.
"use strict";

const make = (tag, props = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), props);
  element.append(...children);
  return element;
};
const code = (text) => make("code", { textContent: text });
// A text in which `words` are code.
const prose = (text) => text.split("`").map((part, i) => (i % 2 ? code(part) : part));
const field = document.getElementById("key");
field.value = sessionStorage.getItem("key") ?? "";
const headers = () => (field.value ? { authorization: `Bearer ${field.value}` } : {});

async function load() {
  const response = await fetch("openapi.json", { headers: headers() });
  if (response.status === 401) throw new Error(field.value ? "This is not the server's API key." : "This server wants an API key, above.");
  if (!response.ok) throw new Error(`openapi.json: the server answered ${response.status}`);
  return response.json();
}

// How a shell asks the same.
function curl(method, path, body) {
  const base = new URL(".", location).href.replace(/\/$/, "");
  const parts = [`curl ${method === "get" || body !== undefined ? "" : `-X ${method.toUpperCase()} `}${base}${path}`];
  if (field.value) parts.push('-H "Authorization: Bearer $KEY"');
  if (body !== undefined) parts.push(`-d '${body.replaceAll("'", "'\\''")}'`);
  return parts.join(" \\\n  ");
}

// An example with a button that sends it; the answer comes as it is streamed.
function trial(path, method, operation) {
  const content = operation.requestBody?.content["application/json"];
  const named = content?.examples ?? (content ? { "": { value: content.example } } : {});
  const bodies = Object.entries(named).map(([name, { value }]) => [name, JSON.stringify(value, null, 2)]);
  const target = (operation.parameters ?? []).reduce((to, { name, example }) => to.replace(`{${name}}`, encodeURIComponent(example)), path);
  const where = make("input", { value: target, ariaLabel: "path", spellcheck: false });
  const body = bodies.length ? make("textarea", { value: bodies[0][1], ariaLabel: "body", spellcheck: false, rows: bodies[0][1].split("\n").length }) : "";
  const shell = make("pre", { className: "shell" });
  const answer = make("pre", { className: "answer", hidden: true });
  const send = make("button", { textContent: "Send" });
  const show = () => { shell.textContent = curl(method, where.value, body ? body.value : undefined); };
  const choose = bodies.length > 1
    ? bodies.map(([name, text]) => make("button", { textContent: name, className: "plain", onclick: () => { body.value = text; body.rows = text.split("\n").length; show(); } }))
    : [];
  for (const input of [where, body, field]) if (input) input.addEventListener("input", show);
  send.onclick = async () => {
    send.disabled = true;
    answer.hidden = false;
    answer.textContent = "…";
    try {
      const request = { method: method.toUpperCase(), headers: headers(), ...(body ? { body: body.value } : {}) };
      const response = await fetch(`.${where.value}`, request);
      const pieces = response.body.pipeThrough(new TextDecoderStream()).getReader();
      answer.textContent = `${response.status}\n`;
      let text = "";
      for (let piece = await pieces.read(); !piece.done; piece = await pieces.read()) {
        text += piece.value;
        answer.textContent = `${response.status}\n${text}`;
      }
      // One object is easier to read in lines.
      try { answer.textContent = `${response.status}\n${JSON.stringify(JSON.parse(text), null, 2)}`; } catch { /* a stream, or a text */ }
    } catch (error) {
      answer.textContent = `no answer: ${error.message}`;
    }
    send.disabled = false;
  };
  show();
  return make("div", { className: "trial" }, make("div", { className: "line" }, make("b", { textContent: method.toUpperCase() }), where, ...choose, send), body, shell, answer);
}

function draw(doc) {
  const follow = (node) => (node?.$ref ? node.$ref.slice(2).split("/").reduce((at, part) => at[part], doc) : node);
  const plural = (schema) => kind(schema).replace(/^(string|integer|number|object|boolean)\b/, "$1s");
  const kind = (schema) => {
    schema = follow(schema) ?? {};
    if (schema.oneOf) return schema.oneOf.map(kind).join(" or ");
    if (schema.type === "array") return `list of ${schema.items ? plural(schema.items) : "values"}`;
    if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(", ");
    if ("const" in schema) return JSON.stringify(schema.const);
    return [schema.type].flat().map((type) => (type === "boolean" ? "true or false" : type)).filter(Boolean).join(" or ") || "anything";
  };
  const limits = (schema) => {
    const { minimum: low, maximum: high, default: fallback, description } = follow(schema);
    const range = low !== undefined && high !== undefined ? `From ${low} to ${high}` : low !== undefined ? `At least ${low}` : high !== undefined ? `At most ${high}` : "";
    const ending = fallback === undefined ? range : `${range ? `${range}; by` : "By"} default \`${JSON.stringify(fallback)}\``;
    return [description, ending && `${ending}.`].filter(Boolean).join(" ");
  };
  const fields = (schema, path = "") => {
    schema = follow(schema);
    if (schema.oneOf) return schema.oneOf.flatMap((one) => [...(path ? [] : [head(`Fields: ${follow(one).title ?? kind(one)}`)]), ...fields(one, path)]);
    const required = schema.required ?? [];
    const all = Object.entries(schema.properties ?? {});
    const sorted = [...all.filter(([name]) => required.includes(name)), ...all.filter(([name]) => !required.includes(name))];
    return sorted.flatMap(([name, one]) => {
      const inner = follow(one);
      const must = required.includes(name) ? make("em", { textContent: "required" }) : "";
      const row = make("tr", {}, make("td", { className: "name" }, code(path + name), must), make("td", { textContent: kind(one) }), make("td", {}, ...prose(limits(one))));
      const items = inner.type === "array" ? follow(inner.items) : inner;
      const below = items?.type === "object" ? fields(items, `${path}${name}${inner.type === "array" ? "[]" : ""}.`) : [];
      return [row, ...below];
    });
  };
  const head = (text) => make("tr", {}, make("th", { colSpan: 3, textContent: text }));
  const route = (path, method, operation) => {
    const rows = [];
    const body = follow(operation.requestBody?.content["application/json"].schema);
    if (body) rows.push(...(body.oneOf ? [] : [head("Fields")]), ...fields(body));
    rows.push(head("Answers"));
    for (const [status, answer] of Object.entries(operation.responses)) {
      const { description, content } = follow(answer);
      rows.push(make("tr", {}, make("td", { className: "name" }, code(status)), make("td", { textContent: Object.keys(content).join(", ") }), make("td", {}, ...prose(description))));
    }
    const line = make("summary", {}, make("b", { textContent: method.toUpperCase() }), code(path), make("span", { textContent: operation.summary }));
    const details = make("details", { id: `${method}${path}` }, line);
    // Drawn when it is looked at: there are hundreds of fields.
    details.addEventListener("toggle", () => {
      if (details.children.length > 1) return;
      const inside = make("div", { className: "inside" }, make("p", {}, ...prose(operation.description ?? "")), trial(path, method, operation), make("table", {}, make("tbody", {}, ...rows)));
      details.append(inside);
    });
    return details;
  };
  const sections = doc.tags.map(({ name, description }) => {
    const routes = Object.entries(doc.paths).flatMap(([path, methods]) =>
      Object.entries(methods).filter(([, operation]) => operation.tags?.includes(name)).map(([method, operation]) => route(path, method, operation)));
    return make("section", { id: name }, make("h2", { textContent: name }), make("p", {}, ...prose(description ?? "")), ...routes);
  });
  document.getElementById("about").replaceChildren(...prose(`${doc.info.description} Version ${doc.info.version}.`));
  document.getElementById("sections").replaceChildren(...doc.tags.map(({ name }) => make("a", { href: `#${name}`, textContent: name })));
  document.getElementById("routes").replaceChildren(...sections);
  // One that the address names is open.
  const named = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (named instanceof HTMLDetailsElement) named.open = true;
}

const refresh = () => load().then(draw).catch((error) => { document.getElementById("routes").textContent = error.message; });
field.addEventListener("change", () => { sessionStorage.setItem("key", field.value); refresh(); });
refresh();
