/* Small helpers to build the page. Whatever comes from a server or a person is set as text, never
   as HTML. */

import { say, sayLabel, t } from "./text.js";

export const $ = (selector) => document.querySelector(selector);

/** An element; `text` and `label` are keys of text.js, every other property is set as it is. */
export function el(tag, { text, label, on = {}, ...properties } = {}, ...children) {
  const node = document.createElement(tag);
  Object.assign(node, properties);
  for (const [event, listener] of Object.entries(on)) node.addEventListener(event, listener);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  if (text) say(node, text);
  if (label) sayLabel(node, label);
  return node;
}

export const button = (key, listener, className = "quiet") =>
  el("button", { type: "button", text: key, className, on: { click: listener } });

/** Read aloud by screen readers. */
export function announce(message) {
  $("#announcer").textContent = message;
}

let toastTimer;
/** A short notice; with `undo` also a button that takes back what was done. */
export function toast(key, undo = null) {
  const box = $("#toast");
  const close = () => {
    box.hidden = true;
  };
  const back = undo && button("undo", () => (close(), undo()), "link");
  box.replaceChildren(el("span", { text: key }), ...(back ? [back] : []));
  box.hidden = false;
  announce(t(key));
  clearTimeout(toastTimer);
  toastTimer = setTimeout(close, undo ? 8000 : 2500);
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast("copied");
  } catch {
    // Browsers give pages a clipboard only on https and localhost, or when the person allows it.
    toast("copyRefused");
  }
}

/** Enter sends, Shift+Enter is a new line; the Enter that ends a syllable being composed neither. */
export function sendOnEnter(field, send) {
  field.addEventListener("keydown", (event) => {
    // Safari ends the composition before the key arrives; 229 still marks the key as the editor's.
    const composing = event.isComposing || event.keyCode === 229;
    if (event.key !== "Enter" || event.shiftKey || composing) return;
    event.preventDefault();
    send();
  });
}

/** What went wrong, with a button to try again; after a 429 the button waits as long as was asked. */
export function problem(error, retry = null) {
  const box = el("div", { className: "problem" });
  box.setAttribute("role", "alert");
  box.append(el("p", { textContent: error.message }));
  if (!retry) return box;
  const again = button("retry", retry, "");
  box.append(again);
  let left = Math.ceil(error.retryAfter ?? 0);
  const tick = () => {
    again.disabled = left > 0;
    say(again, left > 0 ? "retryIn" : "retry", { seconds: left });
    left -= 1;
    if (left >= 0 && box.isConnected) setTimeout(tick, 1000);
  };
  // The first tick waits for the box to be on the page: it stops when the box is gone.
  if (left > 0) queueMicrotask(tick);
  return box;
}
