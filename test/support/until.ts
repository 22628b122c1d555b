import { isolationUnderTest } from "./engine-under-test.ts";

/** An emulated processor is many times slower, and on a busy host slower still. */
const patienceMs = isolationUnderTest === "microvm-tcg" ? 60_000 : 15_000;

/** Waits until a condition holds; fails with its name after `timeoutMs`. */
export async function until(what: string, holds: () => boolean | Promise<boolean>, timeoutMs = patienceMs): Promise<void> {
  const deadline = Date.now() + timeoutMs;
  while (!(await holds())) {
    if (Date.now() > deadline) throw new Error(`waited ${timeoutMs} ms in vain: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
