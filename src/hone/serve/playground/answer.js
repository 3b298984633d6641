/* One answer of the model while it streams and afterwards: its text, tokens, speed and problems. */

import { stream } from "./api.js";
import { announce, el, problem } from "./dom.js";
import { markdown } from "./markdown.js";
import { request } from "./settings.js";
import { number, say, t } from "./text.js";
import { Placement, admitFocus, chatTokens, completionTokens, tokenNodes } from "./tokens.js";

const ENDPOINTS = {
  chat: {
    path: "v1/chat/completions",
    logprobs: { logprobs: true, top_logprobs: 5 },
    text: (choice) => choice.delta?.content ?? "",
    tokens: (choice) => chatTokens(choice.logprobs),
  },
  completion: {
    path: "v1/completions",
    logprobs: { logprobs: 5 },
    text: (choice) => choice.text ?? "",
    tokens: (choice) => completionTokens(choice.logprobs),
  },
};
const FINISHES = { length: "finishLength", content_filter: "finishFilter" };

export class Answer {
  /** @param kind "chat" or "completion"; the text of a chat is shown as Markdown. */
  constructor(kind) {
    this.kind = kind;
    this.text = "";
    this.placement = new Placement();
    this.body = el("div", { className: `answer ${kind}`, dir: "auto" });
    this.facts = el("p", { className: "facts" });
    this.trouble = el("div");
    this.nodes = [this.body, this.trouble, this.facts];
  }

  /** Stream the answer to `ask` ({messages} or {prompt}, and model).
   *
   * Never throws: what goes wrong is shown, with `retry` on a button. Returns the error or null.
   */
  async run(ask, { signal, retry }) {
    this.times = { start: performance.now() };
    this.body.classList.add("writing");
    this.body.setAttribute("aria-busy", "true");
    let error = null;
    try {
      await this.read(ask, signal);
    } catch (caught) {
      if (caught.name === "AbortError") this.finish = "finishStopped";
      else error = caught;
    }
    clearTimeout(this.timer);
    this.body.classList.remove("writing");
    this.body.removeAttribute("aria-busy");
    this.placement.update(this.text, [], true);
    this.draw();
    admitFocus(this.body);
    this.tell();
    if (error) this.trouble.replaceChildren(problem(error, retry));
    else announce(this.text);
    return error;
  }

  async read(ask, signal) {
    const { path, logprobs, text, tokens } = ENDPOINTS[this.kind];
    const body = {
      ...ask,
      ...request(logprobs),
      stream: true,
      stream_options: { include_usage: true },
    };
    for await (const event of stream(path, body, signal)) {
      if (event.usage) this.usage = event.usage;
      const choice = event.choices?.[0];
      if (!choice) continue;
      if (choice.finish_reason) this.finish = FINISHES[choice.finish_reason];
      const piece = text(choice);
      const found = tokens(choice);
      if (piece || found.length > 0) {
        this.times.first ??= performance.now();
        this.times.last = performance.now();
      }
      this.count = (this.count ?? 0) + (found.length || (piece ? 1 : 0));
      this.text += piece;
      this.placement.update(this.text, found, false);
      this.drawSoon();
    }
  }

  /** Draw at most every 50 ms, and less often where one drawing takes long. */
  drawSoon() {
    if (this.timer) return;
    this.timer = setTimeout(
      () => {
        this.timer = null;
        const start = performance.now();
        this.draw();
        this.tell();
        this.cost = performance.now() - start;
      },
      Math.max(50, 4 * (this.cost ?? 0)),
    );
  }

  draw() {
    const leaf = (start, end) => tokenNodes(this.text, this.placement.spans, start, end);
    const nodes =
      this.kind === "chat" ? markdown(this.text, leaf) : leaf(0, this.text.length);
    this.body.replaceChildren(...nodes);
    this.body.dispatchEvent(new CustomEvent("drawn", { bubbles: true }));
  }

  /** Time to the first token, tokens per second after it, and how many were used. */
  tell() {
    const { start, first, last } = this.times;
    const facts = [];
    const add = (key, args) => facts.push(say(el("span"), key, args));
    if (first) add("factFirst", { ms: number(first - start, 0) });
    const made = this.usage?.completion_tokens ?? this.count ?? 0;
    if (made > 1 && last > first) {
      const speed = (1000 * (made - 1)) / (last - first);
      add("factSpeed", { speed: number(speed, speed < 100 ? 1 : 0) });
    }
    if (this.usage) {
      const cached = this.usage.prompt_tokens_details?.cached_tokens;
      const used = { prompt: number(this.usage.prompt_tokens), made: number(made) };
      if (cached) add("factUsageCached", { ...used, cached: number(cached) });
      else add("factUsage", used);
    } else if (made) {
      add("factMade", { made: number(made) });
    }
    if (this.finish) add(this.finish);
    this.facts.replaceChildren(...facts);
  }
}

/** Announce that an answer is on its way. */
export const announceStart = () => announce(t("writing"));
