/* SQL in colours. */

import { el } from "./dom.js";

const KEYWORDS = new Set(
  `ALL AND AS ASC BETWEEN BY CASE CAST COLLATE CROSS CURRENT DESC DISTINCT ELSE END ESCAPE EXCEPT
   EXISTS FALSE FILTER FOLLOWING FROM FULL GLOB GROUP HAVING IN INNER INTERSECT IS JOIN LEFT LIKE
   LIMIT MATERIALIZED NATURAL NOT NULL NULLS OFFSET ON OR ORDER OUTER OVER PARTITION PRECEDING RANGE
   RECURSIVE REGEXP RIGHT ROW ROWS SELECT THEN TRUE UNBOUNDED UNION USING VALUES WHEN WHERE WINDOW
   WITH`.split(/\s+/),
);
const PARTS = new RegExp(
  [
    "(?<comment>--[^\\n]*|/\\*[\\s\\S]*?(?:\\*/|$))",
    "(?<string>'(?:[^']|'')*'?)",
    '(?<name>"(?:[^"]|"")*"?|`[^`]*`?|\\[[^\\]]*\\]?)',
    "(?<number>\\b\\d+(?:\\.\\d+)?(?:[eE][+-]?\\d+)?\\b)",
    "(?<word>[\\p{L}_][\\p{L}\\p{N}_$]*)",
  ].join("|"),
  "gu",
);

/** The nodes of `sql`, its words in spans by what they are. */
export function highlight(sql) {
  const nodes = [];
  let at = 0;
  for (const match of sql.matchAll(PARTS)) {
    if (match.index > at) nodes.push(document.createTextNode(sql.slice(at, match.index)));
    at = match.index + match[0].length;
    const kind = Object.keys(match.groups).find((name) => match.groups[name] !== undefined);
    const called = /^\s*\(/.test(sql.slice(at, at + 20));
    nodes.push(el("span", { className: wordKind(kind, match[0], called), textContent: match[0] }));
  }
  nodes.push(document.createTextNode(sql.slice(at)));
  return nodes;
}

function wordKind(kind, word, called) {
  if (kind !== "word") return `sql-${kind}`;
  if (KEYWORDS.has(word.toUpperCase())) return "sql-keyword";
  return called ? "sql-function" : "sql-name";
}
