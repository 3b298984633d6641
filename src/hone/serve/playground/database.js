/* The database pane: what is in it, a question, the SQL that the model wrote, the rows. */

import { ApiError, askDatabase, getDatabase, runQuery } from "./api.js";
import { $, announce, copy, el, problem, sendOnEnter } from "./dom.js";
import { schemaTree } from "./schema.js";
import { highlight } from "./sql.js";
import { number, say, t } from "./text.js";

const LONG = 40; // characters; longer values are broken into lines

export class DatabasePane {
  /** @param server {model(), ready(), failed(error)}: the chosen model, and whom to tell. */
  constructor(server) {
    this.server = server;
    this.stopper = null;
    this.result = null;
    this.question = $("#question");
    this.sql = $("#sql");
    sendOnEnter(this.question, () => this.ask());
    $("#ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.ask();
    });
    this.sql.addEventListener("input", () => this.paint());
    this.sql.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || event.isComposing) return;
      event.preventDefault();
      this.run();
    });
    $("#run-sql").addEventListener("click", () => this.run());
    $("#database-stop").addEventListener("click", () => this.stop());
    $("#copy-sql").addEventListener("click", () => copy(this.sql.value));
    $("#copy-rows").addEventListener("click", () => copy(asTabs(this.result)));
    this.paint();
    this.show();
  }

  get busy() {
    return this.stopper !== null;
  }

  async load() {
    try {
      this.schema = await getDatabase();
    } catch (error) {
      $("#schema").replaceChildren(problem(error, () => this.load()));
      return;
    }
    this.relabel();
    const examples = (this.schema.questions ?? []).slice(0, 6).map((text) =>
      el("button", {
        type: "button",
        className: "chip",
        textContent: text,
        on: {
          click: () => {
            this.question.value = text;
            this.ask();
          },
        },
      }),
    );
    $("#examples").replaceChildren(...examples);
  }

  /** Draw the schema, whose names are in the language of the page. */
  relabel() {
    if (this.schema) $("#schema").replaceChildren(...schemaTree(this.schema));
  }

  stop() {
    this.stopper?.abort();
  }

  ask() {
    const question = this.question.value.trim();
    if (!question) return;
    this.fetch((signal) => this.write(question, signal), "thinking", () => this.ask());
  }

  /** Show the query while the model writes it; gives the whole answer. */
  async write(question, signal) {
    let sql = "";
    let answer = null;
    for await (const event of askDatabase(question, this.server.model(), signal)) {
      if (event.delta === undefined) {
        answer = event;
      } else {
        sql += event.delta;
        this.sql.value = sql;
        this.paint();
      }
    }
    if (!answer) throw new ApiError(t("errorBroken"));
    return answer;
  }

  run() {
    const sql = this.sql.value.trim();
    if (!sql) return;
    this.fetch((signal) => runQuery(sql, signal), "running", () => this.run());
  }

  async fetch(call, doing, retry) {
    if (this.busy || !this.server.ready()) return;
    this.stopper = new AbortController();
    const start = performance.now();
    say($("#database-state"), doing);
    announce(t(doing));
    $("#trouble").replaceChildren();
    this.show();
    let error = null;
    try {
      const result = await call(this.stopper.signal);
      this.take(result, performance.now() - start);
    } catch (caught) {
      say($("#database-state"), caught.name === "AbortError" ? "finishStopped" : null);
      if (caught.name !== "AbortError") error = caught;
    }
    this.stopper = null;
    this.show();
    if (error) {
      $("#trouble").replaceChildren(problem(error, retry));
      this.server.failed(error);
    }
  }

  take(result, elapsed) {
    this.result = result;
    this.sql.value = result.sql ?? this.sql.value;
    this.paint();
    const facts = {
      rows: number(result.rows.length),
      query: number(1000 * (result.seconds ?? 0), 1),
      all: number(elapsed, 0),
    };
    if (result.error) {
      say($("#database-state"), null);
      $("#trouble").replaceChildren(problem({ message: result.error }));
      $("#rows").replaceChildren();
    } else {
      say($("#database-state"), result.truncated ? "rowsCut" : "rowsFound", facts);
      announce(t(result.truncated ? "rowsCut" : "rowsFound", facts));
      $("#rows").replaceChildren(rowsTable(result));
    }
  }

  paint() {
    // The line that a final newline begins has no height of its own.
    $("#sql-colours").replaceChildren(...highlight(this.sql.value), "\n");
    this.show();
  }

  show() {
    const { busy } = this;
    $("#database").classList.toggle("busy", busy);
    $("#rows").setAttribute("aria-busy", busy);
    $("#database-stop").hidden = !busy;
    $("#ask-send").hidden = busy;
    $("#ask-send").disabled = !this.server.ready();
    $("#run-sql").disabled = busy || !this.server.ready() || this.sql.value.trim() === "";
    $("#copy-sql").disabled = this.sql.value === "";
    $("#copy-rows").hidden = !(this.result?.rows.length > 0);
    $("#query").hidden = this.result === null && this.sql.value === "";
  }
}

function rowsTable({ columns, rows }) {
  const numeric = columns.map((_, i) =>
    rows.every((row) => row[i] === null || typeof row[i] === "number"),
  );
  const heads = columns.map((name, i) =>
    el("th", { scope: "col", className: numeric[i] ? "numeric" : "", textContent: name }),
  );
  const body = rows.map((row) => el("tr", {}, ...row.map((value, i) => cell(value, numeric[i]))));
  if (rows.length === 0) {
    body.push(el("tr", {}, el("td", { colSpan: columns.length || 1, className: "null", text: "noRows" })));
  }
  return el("table", {}, el("thead", {}, el("tr", {}, ...heads)), el("tbody", {}, ...body));
}

function cell(value, numeric) {
  if (value === null) return el("td", { className: "null", textContent: "NULL" });
  const textContent = String(value);
  const long = textContent.length > LONG || textContent.includes("\n");
  const className = numeric ? "numeric" : long ? "long" : "";
  return el("td", { className, dir: "auto", textContent });
}

/** Tab-separated, as spreadsheets take it from the clipboard. */
function asTabs({ columns, rows }) {
  const plain = (value) => String(value ?? "").replace(/[\t\r\n]+/g, " ");
  return [columns, ...rows].map((row) => row.map(plain).join("\t")).join("\n");
}
