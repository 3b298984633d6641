/* The page in two languages. An element remembers the key of its text, so that switching the
   language finds everything that is on the page. */

import { recall, remember } from "./store.js";
import { WORDS } from "./words.js";

let current = "en";

export const language = () => current;

/** The text of `key`, its {names} filled from `values`. */
export function t(key, values = {}) {
  const text = WORDS[key]?.[current];
  if (text === undefined) throw new Error(`There is no text called ${key}.`);
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

export const number = (value, digits = 0) =>
  value.toLocaleString(current, { minimumFractionDigits: digits, maximumFractionDigits: digits });

/** Set an element's text by its key; null empties it. */
export function say(node, key, values = {}) {
  if (key === null) {
    delete node.dataset.text;
    node.textContent = "";
    return node;
  }
  node.dataset.text = key;
  node.dataset.values = JSON.stringify(values);
  node.textContent = t(key, values);
  return node;
}

/** Set what an element is called, for pointers that rest on it and for screen readers. */
export function sayLabel(node, key) {
  node.dataset.label = key;
  node.title = t(key);
  node.setAttribute("aria-label", t(key));
  return node;
}

export function sayPlaceholder(node, key) {
  node.dataset.placeholder = key;
  node.placeholder = t(key);
  return node;
}

function translatePage() {
  document.documentElement.lang = current;
  for (const node of document.querySelectorAll("[data-text]")) {
    say(node, node.dataset.text, JSON.parse(node.dataset.values ?? "{}"));
  }
  for (const node of document.querySelectorAll("[data-label]")) sayLabel(node, node.dataset.label);
  for (const node of document.querySelectorAll("[data-placeholder]")) {
    sayPlaceholder(node, node.dataset.placeholder);
  }
  document.dispatchEvent(new Event("language"));
}

/** Begin in the language chosen before, else the browser's. */
export function startLanguage() {
  const preferred = recall("language", navigator.language.split("-")[0]);
  current = preferred === "ko" ? "ko" : "en";
  translatePage();
}

export function switchLanguage() {
  current = current === "ko" ? "en" : "ko";
  remember("language", current);
  translatePage();
}
