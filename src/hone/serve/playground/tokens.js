/* The tokens of an answer: where each stands in the text, its colour, and what else was likely. */

import { $, el } from "./dom.js";
import { language, t } from "./text.js";

const LEAST_SHOWN = 0.001;
const encoder = new TextEncoder();

/** One token as the page keeps it: {bytes, logprob, top: [{bytes, logprob}]}. */
const kept = (token) => ({
  bytes: Uint8Array.from(token.bytes ?? bytesOf(token.token)),
  logprob: token.logprob,
});

/** Completions have no bytes; they name a part of a character as bytes:\xeb\x9d. */
function bytesOf(text) {
  if (!/^bytes:(\\x[0-9a-f]{2})+$/i.test(text)) return encoder.encode(text);
  return text.match(/[0-9a-f]{2}(?=\\|$)/gi).map((hex) => Number.parseInt(hex, 16));
}

/** The tokens of one chunk of chat. */
export const chatTokens = (logprobs) =>
  (logprobs?.content ?? []).map((token) => ({
    ...kept(token),
    top: (token.top_logprobs ?? []).map(kept),
  }));

/** The tokens of one chunk of a completion. */
export const completionTokens = (logprobs) =>
  (logprobs?.tokens ?? []).map((token, i) => ({
    ...kept({ token, logprob: logprobs.token_logprobs[i] }),
    top: Object.entries(logprobs.top_logprobs?.[i] ?? {})
      .map(([other, logprob]) => kept({ token: other, logprob }))
      .sort((a, b) => b.logprob - a.logprob),
  }));

/** Finds out which part of the text came from which tokens, while both grow. */
export class Placement {
  constructor() {
    this.spans = []; // {start, end, tokens}: several tokens where they make one character together
    this.end = 0;
    this.waiting = []; // tokens that have come and have no place yet
    this.half = []; // tokens that end within a character
    this.decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  }

  /** Place what can be placed; `whole` says that no more text will come. */
  update(text, tokens, whole) {
    this.waiting.push(...tokens.map((token) => ({ token, text: null })));
    while (this.waiting.length > 0) {
      const [next] = this.waiting;
      next.text ??= this.decoder.decode(next.token.bytes, { stream: true });
      // Text may lag behind its tokens: what could begin a stop string is held back.
      const left = text.slice(this.end);
      if (!whole && left.length < next.text.length && next.text.startsWith(left)) return;
      this.waiting.shift();
      this.half.push(next.token);
      if (next.text !== "") this.place(text, next.text);
    }
  }

  place(text, piece) {
    // The space with which some tokenizers begin a text is dropped from it, and the token that
    // ends an answer is no part of it.
    const found = [piece, piece.trimStart()].find((part) => part && text.startsWith(part, this.end));
    if (found) {
      const start = this.end;
      this.end += found.length;
      this.spans.push({ start, end: this.end, tokens: this.half });
    }
    this.half = [];
  }
}

/** The nodes of text[start:end]: a span for each token in it, plain text for the rest. */
export function tokenNodes(text, spans, start, end) {
  const nodes = [];
  let at = start;
  for (let i = firstAfter(spans, start); i < spans.length && spans[i].start < end; i += 1) {
    const from = Math.max(spans[i].start, at);
    const to = Math.min(spans[i].end, end);
    if (from > at) nodes.push(document.createTextNode(text.slice(at, from)));
    nodes.push(tokenNode(text.slice(from, to), spans[i].tokens));
    at = to;
  }
  if (at < end) nodes.push(document.createTextNode(text.slice(at, end)));
  return nodes;
}

function firstAfter(spans, position) {
  let [low, high] = [0, spans.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (spans[middle].end <= position) low = middle + 1;
    else high = middle;
  }
  return low;
}

const details = new WeakMap();
const probability = (token) => Math.exp(token.logprob ?? 0);

function tokenNode(text, tokens) {
  const node = el("span", { className: "token", textContent: text, tabIndex: -1 });
  const sure = Math.min(...tokens.map(probability));
  node.style.setProperty("--doubt", `${Math.round((1 - sure) * 100)}%`);
  details.set(node, tokens);
  return node;
}

/* -------------------------------------------------------------------------- the popover */

function percent(value) {
  const shape = { style: "percent", maximumFractionDigits: 1 };
  const text = new Intl.NumberFormat(language(), shape).format(Math.max(value, LEAST_SHOWN));
  return value < LEAST_SHOWN ? `<${text}` : text;
}

/** A token so that its spaces can be seen; bytes where it is no whole text. */
function visible(bytes) {
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    const hex = [...bytes].map((byte) => byte.toString(16).toUpperCase().padStart(2, "0"));
    return `⟨${hex.join(" ")}⟩`;
  }
  if (text === "") return t("tokenEmpty");
  return text.replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/\r/g, "␍");
}

const same = (a, b) => a.length === b.length && a.every((byte, i) => byte === b[i]);

function alternatives(token) {
  const chosen = (other) => same(other.bytes, token.bytes);
  const all = token.top.some(chosen) ? token.top : [...token.top, token];
  const list = el("ol");
  for (const other of all) {
    const p = probability(other);
    const bar = el("i");
    bar.style.setProperty("--width", `${p * 100}%`);
    const row = el("li", { className: chosen(other) ? "chosen" : "" });
    row.append(
      el("code", { textContent: visible(other.bytes) }),
      el("b", { textContent: percent(p) }),
      bar,
    );
    if (chosen(other)) row.append(el("small", { text: "tokenChosen" }));
    list.append(row);
  }
  return list;
}

let shown = null;

function show(node) {
  const box = $("#popover");
  shown?.removeAttribute("aria-describedby");
  shown = node;
  box.replaceChildren(...details.get(node).map(alternatives));
  box.hidden = false;
  node.setAttribute("aria-describedby", "popover");
  const place = node.getClientRects()[0] ?? node.getBoundingClientRect();
  const size = box.getBoundingClientRect();
  const left = Math.min(place.left, document.documentElement.clientWidth - size.width - 8);
  const above = place.top - size.height - 6;
  box.style.left = `${Math.max(8, left)}px`;
  box.style.top = `${above > 8 ? above : place.bottom + 6}px`;
}

/** Close the popover; false where none was open. */
export function hidePopover() {
  if (!shown) return false;
  shown.removeAttribute("aria-describedby");
  shown = null;
  $("#popover").hidden = true;
  return true;
}

const isToken = (node) => node instanceof Element && details.has(node);

/** Pointer and keyboard for the tokens inside `container`: one tab stop, arrows go on from there. */
export function watchTokens(container) {
  const one = (event, handle) => isToken(event.target) && handle(event.target);
  container.addEventListener("pointerover", (event) => one(event, show));
  container.addEventListener("pointerout", (event) => {
    if (event.pointerType === "mouse" && event.target !== document.activeElement) hidePopover();
  });
  container.addEventListener("click", (event) => one(event, (node) => node.focus()));
  container.addEventListener("focusin", (event) => one(event, show));
  container.addEventListener("focusout", hidePopover);
  container.addEventListener("keydown", (event) => one(event, (node) => move(event, node)));
}

function move(event, node) {
  const tokens = [...node.closest(".answer").querySelectorAll(".token")];
  const at = tokens.indexOf(node);
  const places = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: tokens.length - 1 };
  const next = tokens[places[event.key]];
  if (!next) return;
  event.preventDefault();
  node.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

/** Let the tokens of a finished answer be reached with Tab. */
export function admitFocus(answer) {
  const first = answer.querySelector(".token");
  if (first) first.tabIndex = 0;
}
