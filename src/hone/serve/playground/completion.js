/* Continuing a text: for models without a chat template, and to see what one really does. */

import { Answer, announceStart } from "./answer.js";
import { $, copy } from "./dom.js";

export class Completion {
  /** @param server {model(), ready(), failed(error)}: the chosen model, and whom to tell. */
  constructor(server) {
    this.server = server;
    this.stopper = null;
    this.current = null;
    this.prompt = $("#prompt");
    $("#completion-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.run();
    });
    // Here Enter belongs to the text.
    this.prompt.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || event.isComposing) return;
      event.preventDefault();
      this.run();
    });
    $("#completion-stop").addEventListener("click", () => this.stop());
    $("#completion-copy").addEventListener("click", () => copy(this.current.text));
    $("#completion-take").addEventListener("click", () => {
      this.prompt.value += this.current.text;
      this.current = null;
      $("#continuation").replaceChildren();
      this.show();
      this.prompt.focus();
    });
    this.show();
  }

  get busy() {
    return this.stopper !== null;
  }

  stop() {
    this.stopper?.abort();
  }

  async run() {
    if (this.busy || !this.prompt.value || !this.server.ready()) return;
    this.current = new Answer("completion");
    $("#continuation").replaceChildren(...this.current.nodes);
    this.stopper = new AbortController();
    this.show();
    announceStart();
    const error = await this.current.run(
      { model: this.server.model(), prompt: this.prompt.value },
      { signal: this.stopper.signal, retry: () => this.run() },
    );
    this.stopper = null;
    this.show();
    if (error) this.server.failed(error);
  }

  show() {
    $("#completion-stop").hidden = !this.busy;
    $("#completion-run").hidden = this.busy;
    $("#completion-run").disabled = !this.server.ready();
    for (const id of ["#completion-copy", "#completion-take"]) {
      $(id).disabled = this.busy || !this.current?.text;
    }
  }
}
