/* The page as a whole: the server's state, the key, the model, the views. */

import { access, getHealth, getInfo, getModels } from "./api.js";
import { Chat } from "./chat.js";
import { Completion } from "./completion.js";
import { DatabasePane } from "./database.js";
import { $, el } from "./dom.js";
import { adoptSettings, buildSettings } from "./settings.js";
import { recall, remember } from "./store.js";
import { number, say, startLanguage, switchLanguage } from "./text.js";
import { hidePopover, watchTokens } from "./tokens.js";

const CALM_MS = 15000; // between looks at a server that is well
const SOON_MS = 500; // after the first failure; then longer
const MOST_MS = 3000;
const VIEWS = ["chat", "completion", "database"];
const STATES = {
  loading: "stateLoading",
  ready: "stateReady",
  failed: "stateFailed",
  stopping: "stateStopping",
  unreachable: "stateUnreachable",
  key: "stateKey",
};

let state = "loading";
let info = null;
let wake = () => {};
const narrow = matchMedia("(max-width: 899px)");

startLanguage();
buildSettings($("#parameters"));
access.key = recall("key", "");

const server = {
  model: () => $("#model").value || info?.name,
  ready: () => state === "ready",
  /** A request failed: a missing key is asked for, and a server in trouble is looked at. */
  failed(error) {
    if (error.status === 401) askForKey();
    if (error.status === 0 || error.status === 503) wake();
  },
};
const panes = {
  chat: new Chat(server),
  completion: new Completion(server),
  database: new DatabasePane(server),
};
watchTokens($("#thread"));
watchTokens($("#continuation"));

/* ------------------------------------------------------------------ the server's state */

function showState(next, message = "") {
  state = next;
  const pill = $("#state");
  if (pill.dataset.state !== next) {
    pill.dataset.state = next;
    for (const node of [pill, $("#waiting")]) say(node, STATES[next] ?? STATES.loading);
  }
  $("#news").hidden = !message;
  $("#news").textContent = message;
  for (const pane of Object.values(panes)) pane.show();
}

/** Look after the server for as long as the page is open. */
async function watch() {
  let pause = SOON_MS;
  for (;;) {
    const before = state;
    try {
      const health = await getHealth();
      if (health.state === "ready" && before === "ready") showState("ready");
      else if (health.state !== "ready") showState(health.state, health.message);
      else if (before !== "key") await load();
    } catch (error) {
      if (error.status === 401) askForKey();
      else if (error.status === 503) showState("loading");
      else showState("unreachable", error.status ? error.message : "");
    }
    pause = state === "ready" ? CALM_MS : before === "ready" ? SOON_MS : Math.min(pause * 1.6, MOST_MS);
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, pause);
      wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}

/** What the server has: its models, and the views that make sense for them. */
async function load() {
  info = await getInfo();
  showModels(await getModels());
  if (info.database) await panes.database.load();
  adoptSettings(info);
  const possible = { chat: info.chat, completion: info.generates, database: info.database };
  for (const view of VIEWS) $(`#tab-${view}`).hidden = !possible[view];
  const wanted = recall("view", info.database ? "database" : "chat");
  const first = [wanted, ...VIEWS].find((view) => possible[view]);
  if (first) open(first);
  say($("#about"), "about", { name: info.name, context: number(info.context ?? 0) });
  $("#about").title = ["dtype", "quantization", "speculation", "version"]
    .map((key) => (info[key] ? `${key}: ${info[key]}` : ""))
    .filter(Boolean)
    .join("\n");
  $("#access").hidden = true;
  $("#key-forget").hidden = !access.key;
  showState("ready");
  if (!first) say($("#waiting"), "onlyEmbeds", { name: info.name });
}

function showModels(names) {
  const adapters = new Set(info.adapters ?? []);
  const options = names.map((name) => {
    const option = el("option", { value: name, textContent: name });
    return adapters.has(name) ? say(option, "adapter", { name }) : option;
  });
  const before = $("#model").value || recall("model", "");
  $("#model").replaceChildren(...options);
  if (names.includes(before)) $("#model").value = before;
  $("#model").hidden = names.length === 0;
  $("#model").classList.toggle("single", names.length === 1);
}

$("#model").addEventListener("change", () => remember("model", $("#model").value));
document.addEventListener("visibilitychange", () => document.hidden || wake());
addEventListener("online", () => wake());

/* ------------------------------------------------------------------ the key */

function askForKey() {
  say($("#access-text"), access.key ? "keyWrong" : "keyAsk");
  const appears = $("#access").hidden;
  $("#access").hidden = false;
  showState("key");
  if (appears) $("#key").focus();
}

$("#access").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = $("#key").value.trim();
  // Headers hold no other letters.
  if (/[^\x21-\x7e]/.test(key)) {
    say($("#access-text"), "errorKey");
    return;
  }
  access.key = key;
  remember("key", $("#key-remember").checked ? access.key : undefined);
  $("#key").value = "";
  showState("loading");
  wake();
});
$("#key-forget").addEventListener("click", () => {
  access.key = "";
  remember("key", undefined);
  $("#key-forget").hidden = true;
  showState("loading");
  wake();
});

/* ------------------------------------------------------------------ views and settings */

function open(view) {
  for (const name of VIEWS) {
    $(`#${name}`).hidden = name !== view;
    $(`#tab-${name}`).setAttribute("aria-selected", name === view);
    $(`#tab-${name}`).tabIndex = name === view ? 0 : -1;
  }
  $("#waiting").hidden = true;
  document.body.dataset.view = view;
  hidePopover();
}

for (const view of VIEWS) {
  $(`#tab-${view}`).addEventListener("click", () => {
    open(view);
    remember("view", view);
  });
}
$('[role="tablist"]').addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step) return;
  const tabs = VIEWS.map((view) => $(`#tab-${view}`)).filter((tab) => !tab.hidden);
  const next = tabs.at((tabs.indexOf(document.activeElement) + step) % tabs.length);
  next.click();
  next.focus();
});

function showSettings(visible) {
  $("#settings").hidden = !visible;
  $("#settings-open").setAttribute("aria-expanded", visible);
  // On a phone the settings cover the page; what is under them cannot be reached meanwhile.
  $("#main").inert = visible && narrow.matches;
}

const settingsOpen = () => !$("#settings").hidden;
$("#settings-open").addEventListener("click", () => {
  showSettings(!settingsOpen());
  if (settingsOpen() && narrow.matches) $("#settings-close").focus();
});
function closeSettings() {
  showSettings(false);
  $("#settings-open").focus();
}
$("#settings-close").addEventListener("click", closeSettings);
narrow.addEventListener("change", () => showSettings(!narrow.matches));
showSettings(!narrow.matches);
$("#schema-box").open = !narrow.matches;

/* Escape takes back the last thing that appeared: a popover, the settings, an answer. */
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing || hidePopover()) return;
  const busy = Object.values(panes).filter((pane) => pane.busy);
  if (settingsOpen() && narrow.matches) closeSettings();
  else for (const pane of busy) pane.stop();
});

$("#language").addEventListener("click", switchLanguage);
document.addEventListener("language", () => panes.database.relabel());
watch();
