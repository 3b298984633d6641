/* The parameters of a request: their fields, their values, and what of them is sent. */

import { $, el } from "./dom.js";
import { recall, remember } from "./store.js";
import { say, t } from "./text.js";

/* `value` is what the server takes where a request says nothing; of max_tokens it is ours. */
const NUMBERS = [
  { name: "temperature", min: 0, max: 2, step: 0.05, value: 1 },
  { name: "top_p", min: 0.01, max: 1, step: 0.01, value: 1 },
  { name: "top_k", min: 0, max: 200, step: 1, value: 0 },
  { name: "min_p", min: 0, max: 1, step: 0.01, value: 0 },
  { name: "max_tokens", min: 1, max: 4096, step: 1, value: 256 },
  { name: "repetition_penalty", min: 0.5, max: 2, step: 0.05, value: 1 },
  { name: "presence_penalty", min: -2, max: 2, step: 0.1, value: 0 },
  { name: "frequency_penalty", min: -2, max: 2, step: 0.1, value: 0 },
];
const TEXTS = ["seed", "stop", "schema"];
const MOST_SEED = Number.MAX_SAFE_INTEGER;

let chosen = {}; // name -> what was set by hand
const fields = {}; // name -> function that shows the value
let tokensShown = true;

/** Build the fields inside `box` and fill them with what was used last. */
export function buildSettings(box) {
  const before = recall("parameters", {});
  for (const { name } of NUMBERS) if (Number.isFinite(before[name])) chosen[name] = before[name];
  for (const name of TEXTS) if (typeof before[name] === "string") chosen[name] = before[name];
  box.append(...NUMBERS.map(numberField), ...TEXTS.map(textField));
  tokensShown = recall("tokens", true);
  const toggle = $("#show-tokens");
  toggle.checked = tokensShown;
  const apply = () => {
    tokensShown = toggle.checked;
    document.body.classList.toggle("plain", !tokensShown);
    remember("tokens", tokensShown);
  };
  toggle.addEventListener("change", apply);
  apply();
  $("#reset").addEventListener("click", () => {
    chosen = {};
    remember("parameters", chosen);
    for (const show of Object.values(fields)) show();
  });
}

/** Take the server's own defaults, and no more tokens than the model has context. */
export function adoptSettings({ context, defaults = {} }) {
  for (const parameter of NUMBERS) {
    if (parameter.name === "max_tokens" && context) parameter.max = context;
    parameter.value = defaults[parameter.name] ?? parameter.value;
  }
  for (const show of Object.values(fields)) show();
}

const clamp = ({ min, max }, value) => Math.min(max, Math.max(min, value));
const valueOf = (parameter) => clamp(parameter, chosen[parameter.name] ?? parameter.value);
const textOf = (name) => chosen[name] ?? "";

function set(name, value) {
  chosen[name] = value;
  remember("parameters", chosen);
}

function numberField(parameter) {
  const { name, min, max, step } = parameter;
  const id = `parameter-${name}`;
  const slider = el("input", { type: "range", min, max, step, id: `${id}-slider`, tabIndex: -1 });
  const box = el("input", { type: "number", min, max, step, id, inputMode: "decimal" });
  slider.setAttribute("aria-hidden", "true");
  const show = () => {
    for (const field of [slider, box]) {
      field.max = parameter.max;
      field.value = valueOf(parameter);
    }
  };
  const take = (field) => {
    if (field.value.trim() === "" || Number.isNaN(field.valueAsNumber)) return;
    const exact = clamp(parameter, field.valueAsNumber);
    set(name, step === 1 ? Math.round(exact) : exact);
  };
  slider.addEventListener("input", () => (take(slider), show()));
  box.addEventListener("input", () => {
    take(box);
    slider.value = valueOf(parameter);
  });
  // Half-typed numbers stay as they are until the field is left.
  box.addEventListener("change", show);
  fields[name] = show;
  show();
  const label = el("label", { htmlFor: id, text: `parameter.${name}` });
  return el("div", { className: "field number" }, label, box, slider);
}

function textField(name) {
  const id = `parameter-${name}`;
  const hint = el("small", { id: `${id}-hint`, text: `hint.${name}` });
  const input =
    name === "seed"
      ? el("input", { id, inputMode: "numeric", autocomplete: "off" })
      : el("textarea", { id, rows: name === "schema" ? 5 : 2, spellcheck: false });
  input.setAttribute("aria-describedby", hint.id);
  const show = () => {
    input.value = textOf(name);
    check(name, input, hint);
  };
  input.addEventListener("input", () => {
    set(name, input.value);
    check(name, input, hint);
  });
  fields[name] = show;
  show();
  const label = el("label", { htmlFor: id, text: `parameter.${name}` });
  return el("div", { className: "field" }, label, input, hint);
}

function check(name, input, hint) {
  const wrong = PARSERS[name](textOf(name)) === undefined;
  input.setAttribute("aria-invalid", wrong);
  say(hint, wrong ? `wrong.${name}` : `hint.${name}`);
}

/* Each gives null for an empty field and undefined for one that cannot be read. */
const PARSERS = {
  seed(text) {
    if (text.trim() === "") return null;
    const seed = Number(text);
    return Number.isInteger(seed) && seed >= 0 && seed <= MOST_SEED ? seed : undefined;
  },
  stop(text) {
    const lines = text.split("\n").filter((line) => line !== "");
    return lines.length ? lines.map((line) => line.replaceAll("\\n", "\n")) : null;
  },
  schema(text) {
    if (text.trim() === "") return null;
    try {
      const schema = JSON.parse(text);
      return schema && typeof schema === "object" && !Array.isArray(schema) ? schema : undefined;
    } catch {
      return undefined;
    }
  },
};

/** The fields of a request; `logprobs` are added when token probabilities are shown.
 *
 * Throws an Error, ready to be read, where a field cannot be.
 */
export function request(logprobs) {
  const body = tokensShown ? { ...logprobs } : {};
  for (const parameter of NUMBERS) {
    const { name, value } = parameter;
    if (name === "max_tokens" || valueOf(parameter) !== value) body[name] = valueOf(parameter);
  }
  const parsed = {};
  for (const name of TEXTS) {
    parsed[name] = PARSERS[name](textOf(name));
    if (parsed[name] === undefined) throw new Error(`${t(`parameter.${name}`)}: ${t(`wrong.${name}`)}`);
  }
  if (parsed.seed !== null) body.seed = parsed.seed;
  if (parsed.stop !== null) body.stop = parsed.stop;
  if (parsed.schema !== null) {
    const json_schema = { name: "answer", schema: parsed.schema, strict: true };
    body.response_format = { type: "json_schema", json_schema };
  }
  return body;
}
