import { print } from "./output.ts";

const titleWidth = 46;
const timeWidth = 9;

/** What was done, whether it held, and how long it took: one aligned line each. */
export class Transcript {
  readonly #signal: AbortSignal;
  readonly #aborted: Promise<never>;
  #began = performance.now();

  constructor(signal: AbortSignal) {
    this.#signal = signal;
    this.#aborted = new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason), { once: true }));
    this.#aborted.catch(() => undefined);
  }

  heading(text: string): void {
    print(`\n${text}`);
  }

  /** Does the work and prints its line; `note` says what came out. Gives up when the user interrupts. */
  async step<T>(title: string, work: () => Promise<T>, note: (result: T) => string = () => ""): Promise<T> {
    this.#signal.throwIfAborted();
    const began = performance.now();
    try {
      const result = await Promise.race([work(), this.#aborted]);
      this.#line("✓", title, performance.now() - began, note(result));
      return result;
    } catch (error) {
      this.#line("✗", title, performance.now() - began, "");
      throw error;
    }
  }

  /** Since the transcript began. */
  totalMs(): number {
    return performance.now() - this.#began;
  }

  #line(mark: string, title: string, ms: number, note: string): void {
    print(`  ${mark} ${title.padEnd(titleWidth)}${duration(ms).padStart(timeWidth)}${note && `   ${note}`}`);
  }
}

export function duration(ms: number): string {
  return ms < 10 ? `${ms.toFixed(1)} ms` : `${Math.round(ms)} ms`;
}
