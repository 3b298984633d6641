/* A database's schema as a compact tree: tables that open to their columns. */

import { el } from "./dom.js";
import { language, number, say } from "./text.js";

/** The nodes of the tree; small databases show their columns at once. */
export function schemaTree(schema) {
  const references = referencesOf(schema.foreign_keys ?? []);
  const few = schema.tables.length <= 3;
  const notes = (schema.notes ?? []).map((note) =>
    el("p", { className: "note", textContent: note }),
  );
  const name = el("p", { className: "database-name", textContent: schema.name ?? "" });
  return [name, ...schema.tables.map((table) => tableNode(table, references, few)), ...notes];
}

/** "table.column" -> the text of what it refers to. */
function referencesOf(keys) {
  const found = new Map();
  for (const key of keys) {
    key.columns.forEach((column, i) => {
      const target = key.ref_columns[i] ?? "";
      const entry = { to: target ? `${key.ref_table}.${target}` : key.ref_table, ...key };
      found.set(`${key.table}.${column}`, entry);
    });
  }
  return found;
}

function tableNode(table, references, open) {
  const summary = el("summary", {}, el("b", { textContent: table.name }), label(table));
  if (table.is_view) summary.append(el("small", { text: "view" }));
  if (table.rows !== null && table.rows !== undefined) {
    summary.append(
      say(el("small", { className: "count" }), "tableRows", { rows: number(table.rows) }),
    );
  }
  const columns = table.columns.map((column) => {
    const reference = references.get(`${table.name}.${column.name}`);
    return columnNode(column, reference);
  });
  return el("details", { open }, summary, el("ul", {}, ...columns));
}

function columnNode(column, reference) {
  const node = el("li", {}, el("span", { textContent: column.name }), label(column));
  if (column.primary) node.append(el("abbr", { className: "key", textContent: "PK", label: "primaryKey" }));
  if (reference) {
    const text = `→ ${reference.to}`;
    const kind = reference.inferred ? "inferredKey" : "foreignKey";
    node.append(el("abbr", { className: "key", textContent: text, label: kind }));
  }
  node.append(el("small", { textContent: (column.type || column.kind || "").toLowerCase() }));
  const samples = (column.samples ?? []).slice(0, 5).map(String).join(", ");
  if (samples) node.title = samples;
  return node;
}

/** The name that people use, in the language of the page where there is one. */
function label({ name, labels }) {
  const first = labels?.[language()]?.[0];
  return first && first !== name
    ? el("span", { className: "label", textContent: first })
    : null;
}
