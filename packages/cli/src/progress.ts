import { cut } from "./building/text.ts";

const delayMs = 1000;
const frameMs = 100;
const frames = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏";

/**
 * Says on a terminal what is being waited for, from the second on that it takes; nothing elsewhere.
 *
 * @param what - or a function that tells how far it is
 */
export async function withProgress<T>(what: string | (() => string), work: Promise<T>): Promise<T> {
  if (!process.stderr.isTTY) return work;
  const started = performance.now();
  let drawn = 0;
  const timer = setInterval(() => {
    const elapsed = performance.now() - started;
    if (elapsed < delayMs) return;
    const text = typeof what === "string" ? what : what();
    const time = ` … ${(elapsed / 1000).toFixed(0)} s`;
    // A line that wraps could not be drawn over.
    const line = cut(`${frames[drawn++ % frames.length]} ${text}`, (process.stderr.columns ?? 80) - 1 - time.length);
    process.stderr.write(`\r\x1b[K${line}${time}`);
  }, frameMs);
  try {
    return await work;
  } finally {
    clearInterval(timer);
    if (drawn > 0) process.stderr.write("\r\x1b[K");
  }
}
