/* The conversation: its messages, and what is done with them. */

import { Answer, announceStart } from "./answer.js";
import { $, button, copy, el, sendOnEnter, toast } from "./dom.js";
import { recall, remember } from "./store.js";
import { sayPlaceholder } from "./text.js";

export class Chat {
  /** @param server {model(), ready(), failed(error)}: the chosen model, and whom to tell. */
  constructor(server) {
    this.server = server;
    this.messages = []; // {role: "user", content, node} or {role: "assistant", answer, node}
    this.stopper = null;
    this.thread = $("#thread");
    this.input = $("#message");
    this.system = $("#system");
    this.system.value = recall("system", "");
    this.system.addEventListener("input", () => {
      remember("system", this.system.value);
      this.showSystem();
    });
    $("#system-box").open = this.system.value !== "";
    this.showSystem();
    sendOnEnter(this.input, () => this.send());
    $("#composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    $("#stop").addEventListener("click", () => this.stop());
    $("#clear").addEventListener("click", () => this.clear());
    this.stick = true;
    this.thread.addEventListener("scroll", () => {
      const below = this.thread.scrollHeight - this.thread.scrollTop - this.thread.clientHeight;
      this.stick = below < 60;
    });
    this.thread.addEventListener("drawn", () => this.follow());
    this.show();
  }

  get busy() {
    return this.stopper !== null;
  }

  showSystem() {
    $("#system-box").classList.toggle("set", this.system.value.trim() !== "");
  }

  send() {
    const content = this.input.value.trim();
    if (!content || this.busy || !this.server.ready()) return;
    this.input.value = "";
    this.add(this.question(content));
    this.answer();
  }

  stop() {
    this.stopper?.abort();
  }

  /** What is sent: no question whose answer failed, since most templates want them in turn. */
  history() {
    const sent = [];
    for (const { role, content, answer } of this.messages) {
      if (role === "user") sent.push({ role, content });
      else if (answer.text) sent.push({ role, content: answer.text });
      else sent.pop();
    }
    const system = this.system.value.trim();
    return system ? [{ role: "system", content: system }, ...sent] : sent;
  }

  async answer() {
    const answer = new Answer("chat");
    const messages = this.history();
    const message = { role: "assistant", answer };
    message.node = this.box(message, "assistant", answer.nodes, [
      button("copy", () => copy(answer.text)),
      button("regenerate", () => this.again(message)),
    ]);
    this.add(message);
    this.stick = true;
    this.follow();
    const stopper = new AbortController();
    this.stopper = stopper;
    this.show();
    announceStart();
    const error = await answer.run(
      { model: this.server.model(), messages },
      { signal: stopper.signal, retry: () => this.again(message) },
    );
    // Another conversation may have begun meanwhile.
    if (this.stopper === stopper) this.stopper = null;
    message.node.classList.toggle("unsent", !answer.text);
    this.show();
    this.follow();
    if (error) this.server.failed(error);
  }

  /** Answer once more, in place of `message` and all that follows it. */
  again(message) {
    if (this.busy || !this.server.ready()) return;
    this.cut(this.messages.indexOf(message));
    this.answer();
  }

  question(content) {
    const message = { role: "user", content };
    const body = el("div", { className: "asked", dir: "auto", textContent: content });
    message.node = this.box(message, "user", [body], [
      button("edit", () => this.edit(message)),
      button("copy", () => copy(message.content)),
    ]);
    return message;
  }

  box(message, role, nodes, actions) {
    const name = el("h3", { className: "who", text: role });
    const bar = el("div", { className: "actions" }, ...actions);
    return el("article", { className: `message ${role}` }, name, ...nodes, bar);
  }

  edit(message) {
    if (this.busy) return;
    const field = el("textarea", { value: message.content, label: "editMessage", rows: 3 });
    const close = () => {
      message.node.classList.remove("editing");
      form.remove();
      message.node.querySelector("button").focus();
    };
    const save = () => {
      const content = field.value.trim();
      if (!content || this.busy || !this.server.ready()) return;
      this.cut(this.messages.indexOf(message));
      this.add(this.question(content));
      this.answer();
      this.input.focus();
    };
    const buttons = el("div", { className: "row" }, button("resend", save, ""), button("cancel", close));
    const form = el("div", { className: "edit" }, field, buttons);
    sendOnEnter(field, save);
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || event.isComposing) return;
      event.stopPropagation();
      close();
    });
    message.node.querySelector(".edit")?.remove();
    message.node.classList.add("editing");
    message.node.append(form);
    field.focus();
  }

  add(message) {
    this.messages.push(message);
    this.thread.append(message.node);
    this.show();
  }

  cut(from) {
    const removed = this.messages.splice(from);
    for (const { node } of removed) node.remove();
    return removed;
  }

  clear() {
    this.stop();
    this.stopper = null;
    const kept = this.cut(0);
    this.show();
    this.input.focus();
    toast("cleared", () => {
      this.stop();
      this.stopper = null;
      this.cut(0);
      for (const message of kept) this.add(message);
    });
  }

  show() {
    const { busy } = this;
    $("#stop").hidden = !busy;
    $("#send").hidden = busy;
    $("#send").disabled = !this.server.ready();
    $("#clear").disabled = this.messages.length === 0;
    $("#welcome").hidden = this.messages.length > 0;
    this.thread.classList.toggle("busy", busy);
    sayPlaceholder(this.input, busy ? "busyMessage" : "messagePlaceholder");
  }

  follow() {
    if (this.stick) this.thread.scrollTop = this.thread.scrollHeight;
  }
}
