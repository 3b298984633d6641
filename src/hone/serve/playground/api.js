/* What the page asks of the server, and what it is answered. All paths are relative to the page, so
   that it also works behind a proxy that adds a prefix.

   GET  .                          index.html
   GET  playground/NAME            the other files of this folder, as text/css and text/javascript
        All of them: Cache-Control: no-cache, and
        Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self';
          connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none';
          frame-ancestors 'none'
        Neither these nor health need a key. What follows does where the server has keys, as
        Authorization: Bearer KEY; without it the answer is 401 and the page asks for one.

   GET  health                     200 {state: "ready"}, else
                                   503 {state: "loading" | "failed" | "stopping", message?: text}
   GET  v1/models                  {object: "list", data: [{id, ...}]}; the model first, then its
                                   adapters; an id is what "model" says in a request
   GET  api/info                   {name, version, context: tokens, vocabulary: tokens,
                                    chat: bool (has a chat template), generates: bool,
                                    embeds: bool, database: bool, adapters: [text],
                                    quantization: text | null, dtype: text | null,
                                    speculation: text | null,
                                    defaults: {temperature, top_p, ...: what holds where a request
                                               says nothing}}
   GET  api/database               {name: text,
                                    tables: [{name, is_view, rows: number | null,
                                              labels: {en: [text], ko: [text]},
                                              columns: [{name, type, kind, nullable, primary: bool,
                                                         labels: {en: [text], ko: [text]},
                                                         samples: [some values]}]}],
                                    foreign_keys: [{table, columns, ref_table, ref_columns,
                                                    inferred: bool}],
                                    notes: [text], questions: [text] (examples; may be empty)}
                                   404 where there is no database
   POST api/database/run           {sql} ->
                                   {sql, columns: [text], rows: [[value]], truncated: bool,
                                    error: text | null, seconds}
   POST api/database/ask           {question, model?, stream: true} -> events: {delta: text} while
                                   the model writes the query, then the same as from run, [DONE]
        200 also when the query did not run: then error says why, and columns and rows are empty.
        A value is null, a number, true or false, or a text; whole numbers beyond 2^53 and blobs come as text.
        seconds is how long the query ran.

   POST v1/chat/completions        as OpenAI has it, with stream: true,
                                   stream_options: {include_usage: true}, logprobs: true,
                                   top_logprobs: 5; and top_k, min_p, repetition_penalty where they
                                   are not the defaults. Structured output: response_format {type:
                                   "json_schema", json_schema: {name, schema, strict: true}}.
   POST v1/completions             the same with prompt and logprobs: 5; response_format too.

   Errors: a status and {error: {message, type, param, code}}; in a stream a "data:" line with the
   same object. 429 and 503 may carry Retry-After in seconds. */

import { t } from "./text.js";

const TIMEOUT_MS = 15000;

export const access = { key: "" };

/** What went wrong, ready to be read; `status` is 0 where no answer came at all. */
export class ApiError extends Error {
  constructor(message, status = 0, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

export const getHealth = async () => {
  const response = await send("health", { signal: AbortSignal.timeout(TIMEOUT_MS) });
  const body = await response.json().catch(() => ({}));
  return { ...body, state: response.ok ? "ready" : (body.state ?? body.status ?? "loading") };
};
export const getModels = async () => (await getJson("v1/models")).data.map((model) => model.id);
export const getInfo = () => getJson("api/info");
export const getDatabase = () => getJson("api/database");
export const askDatabase = (question, model, signal) =>
  stream("api/database/ask", { question, model, stream: true }, signal);

export async function runQuery(sql, signal) {
  return readJson(await send("api/database/run", { ...asPost({ sql }), signal }, true));
}

async function getJson(path) {
  return readJson(await send(path, { signal: AbortSignal.timeout(TIMEOUT_MS) }, true));
}

async function readJson(response) {
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(t("errorUnreadable"), response.status);
  }
}

const asPost = (body) => ({
  method: "POST",
  headers: { "content-type": "application/json" },
  body: JSON.stringify(body),
});

async function send(path, options, mustBeOk = false) {
  const headers = { ...options.headers };
  if (access.key) headers.authorization = `Bearer ${access.key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(t("errorUnreachable"));
  }
  if (mustBeOk && !response.ok) throw await asError(response);
  return response;
}

async function asError(response) {
  const body = await response.json().catch(() => null);
  const message = body?.error?.message ?? t("errorStatus", { status: response.status });
  const seconds = Number.parseFloat(response.headers.get("retry-after"));
  return new ApiError(message, response.status, Number.isFinite(seconds) ? seconds : null);
}

/** The events of a streamed answer, parsed. Throws where the stream ends without its [DONE]. */
export async function* stream(path, body, signal) {
  const response = await send(path, { ...asPost(body), signal }, true);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await read(reader);
      if (done) throw new ApiError(t("errorBroken"));
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        yield parseEvent(data);
      }
    }
  } finally {
    // Whoever stops reading early has no more use for the connection.
    reader.cancel().catch(() => {});
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(t("errorBroken"));
  }
}

function parseEvent(data) {
  let event;
  try {
    event = JSON.parse(data);
  } catch {
    throw new ApiError(t("errorUnreadable"));
  }
  // An event with an error that is a text tells of a query, not of the request.
  if (event.error?.message) throw new ApiError(event.error.message);
  return event;
}
