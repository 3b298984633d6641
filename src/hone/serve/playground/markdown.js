/* The little Markdown that models write, as DOM nodes: code, headings, lists, bold. Everything
   else stays as it was written. `leaf(start, end)` gives the nodes for that part of the source. */

import { el } from "./dom.js";

const FENCE = /^ {0,3}(```+|~~~+)[ \t]*([\w+#.-]*)[ \t]*$/;
const HEADING = /^(#{1,6})[ \t]+(?=\S)/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])[ \t]+(?=\S)/;
const INLINE = /`([^`\n]+)`|\*\*(?=\S)([^\n]*?\S)\*\*/g;

export function markdown(source, leaf) {
  const lines = cut(source);
  const blocks = [];
  for (let i = 0; i < lines.length; ) {
    const { text, start } = lines[i];
    const fence = FENCE.exec(text);
    if (fence) {
      i = code(lines, i, fence, leaf, blocks);
    } else if (HEADING.test(text)) {
      const marks = HEADING.exec(text)[0].length;
      const heading = el("p", { className: "heading" });
      heading.append(...inline(source, start + marks, start + text.length, leaf));
      blocks.push(heading);
      i += 1;
    } else if (ITEM.test(text)) {
      i = list(source, lines, i, leaf, blocks);
    } else if (text.trim() === "") {
      i += 1;
    } else {
      let last = i;
      while (last + 1 < lines.length && isPlain(lines[last + 1].text)) last += 1;
      const end = lines[last].start + lines[last].text.length;
      const paragraph = el("p");
      paragraph.append(...inline(source, start, end, leaf));
      blocks.push(paragraph);
      i = last + 1;
    }
  }
  return blocks;
}

function cut(source) {
  let start = 0;
  return source.split("\n").map((text) => {
    const line = { text, start };
    start += text.length + 1;
    return line;
  });
}

const isPlain = (text) =>
  text.trim() !== "" && !FENCE.test(text) && !HEADING.test(text) && !ITEM.test(text);

/** A fenced block; one that is still being written goes to the end of the text. */
function code(lines, first, fence, leaf, blocks) {
  let last = first + 1;
  const closes = (text) => text.trim().startsWith(fence[1]) && FENCE.exec(text)?.[2] === "";
  while (last < lines.length && !closes(lines[last].text)) last += 1;
  const inner = el("code");
  if (last > first + 1) {
    const end = lines[last - 1];
    inner.append(...leaf(lines[first + 1].start, end.start + end.text.length));
  }
  const block = el("pre", { tabIndex: 0 }, inner);
  if (fence[2]) block.dataset.language = fence[2];
  blocks.push(block);
  return last + 1;
}

function list(source, lines, first, leaf, blocks) {
  const [, , mark] = ITEM.exec(lines[first].text);
  const numbered = /\d/.test(mark);
  const root = el(numbered ? "ol" : "ul");
  if (numbered) root.start = Number.parseInt(mark, 10);
  let i = first;
  for (; i < lines.length; i += 1) {
    const { text, start } = lines[i];
    const item = ITEM.exec(text);
    if (!item || /\d/.test(item[2]) !== numbered) break;
    const entry = el("li", {}, ...inline(source, start + item[0].length, start + text.length, leaf));
    entry.style.setProperty("--depth", Math.min(4, item[1].length >> 1));
    root.append(entry);
  }
  blocks.push(root);
  return i;
}

function inline(source, start, end, leaf) {
  const nodes = [];
  let at = start;
  for (const match of source.slice(start, end).matchAll(INLINE)) {
    const from = start + match.index;
    if (from > at) nodes.push(...leaf(at, from));
    const marks = match[1] === undefined ? 2 : 1;
    const to = from + match[0].length;
    const inner = leaf(from + marks, to - marks);
    nodes.push(el(marks === 1 ? "code" : "strong", {}, ...inner));
    at = to;
  }
  if (at < end) nodes.push(...leaf(at, end));
  return nodes;
}
