/* What this browser remembers of the page: choices, never a conversation. */

const NAME = "hone.playground";

function read() {
  try {
    return JSON.parse(localStorage.getItem(NAME)) ?? {};
  } catch {
    // Storage may be switched off, or hold what another version wrote.
    return {};
  }
}

export const recall = (key, otherwise) => read()[key] ?? otherwise;

/** Remember `value`; undefined forgets it. */
export function remember(key, value) {
  try {
    localStorage.setItem(NAME, JSON.stringify({ ...read(), [key]: value }));
  } catch {
    // The page works without; it only starts anew next time.
  }
}
