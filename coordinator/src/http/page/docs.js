// Draws openapi.json: a section for each tag, a line for each route, a table of fields and answers inside.
"use strict";

const make = (tag, props = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), props);
  element.append(...children);
  return element;
};
const code = (text) => make("code", { textContent: text });

async function load() {
  let key = sessionStorage.getItem("key");
  let response = await fetch("openapi.json", { headers: key ? { authorization: `Bearer ${key}` } : {} });
  if (response.status === 401) {
    key = prompt("This server wants an API key.") ?? "";
    response = await fetch("openapi.json", { headers: { authorization: `Bearer ${key}` } });
    if (response.ok) sessionStorage.setItem("key", key);
  }
  if (!response.ok) throw new Error(`openapi.json: the server answered ${response.status}`);
  return response.json();
}

function draw(doc) {
  const follow = (node) => (node?.$ref ? node.$ref.slice(2).split("/").reduce((at, part) => at[part], doc) : node);
  const kind = (schema) => {
    schema = follow(schema) ?? {};
    if (schema.oneOf) return schema.oneOf.map(kind).join(" or ");
    if (schema.type === "array") return `list of ${kind(schema.items)}`;
    if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(", ");
    if ("const" in schema) return JSON.stringify(schema.const);
    return [schema.type].flat().join(" or ") || "anything";
  };
  const limits = (schema) => {
    const { minimum: low, maximum: high, default: fallback, description } = follow(schema);
    const range = low !== undefined && high !== undefined ? `${low} to ${high}` : low !== undefined ? `from ${low}` : "";
    return [description, range, fallback !== undefined && `default ${JSON.stringify(fallback)}`].filter(Boolean).join("; ");
  };
  const fields = (schema, path = "") => {
    schema = follow(schema);
    if (schema.oneOf) return schema.oneOf.flatMap((one) => fields(one, path));
    return Object.entries(schema.properties ?? {}).flatMap(([name, field]) => {
      const inner = follow(field);
      const must = schema.required?.includes(name) ? " (required)" : "";
      const row = make("tr", {}, make("td", {}, code(path + name), must), make("td", { textContent: kind(field) }), make("td", { textContent: limits(field) }));
      return [row, ...(inner.type === "object" ? fields(inner, `${path}${name}.`) : [])];
    });
  };
  const head = (text) => make("tr", {}, make("th", { colSpan: 3, textContent: text }));
  const route = (path, method, operation) => {
    const rows = [];
    const body = operation.requestBody?.content["application/json"].schema;
    if (body) rows.push(head("Fields"), ...fields(body));
    rows.push(head("Answers"));
    for (const [status, answer] of Object.entries(operation.responses)) {
      const { description, content } = follow(answer);
      rows.push(make("tr", {}, make("td", {}, code(status)), make("td", { textContent: Object.keys(content).join(", ") }), make("td", { textContent: description })));
    }
    const line = make("summary", {}, make("b", { textContent: method.toUpperCase() }), code(path), make("span", { textContent: operation.summary }));
    const inside = make("div", { className: "inside" }, make("p", { textContent: operation.description ?? "" }), make("table", {}, make("tbody", {}, ...rows)));
    return make("details", {}, line, inside);
  };
  const sections = doc.tags.map(({ name }) => {
    const routes = Object.entries(doc.paths).flatMap(([path, methods]) =>
      Object.entries(methods).filter(([, operation]) => operation.tags?.includes(name)).map(([method, operation]) => route(path, method, operation)));
    return make("section", {}, make("h2", { textContent: name }), ...routes);
  });
  document.getElementById("about").textContent = `${doc.info.description} Version ${doc.info.version}.`;
  document.getElementById("routes").replaceChildren(...sections);
}

load().then(draw).catch((error) => { document.getElementById("routes").textContent = error.message; });
