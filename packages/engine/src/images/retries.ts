import { MitosError } from "@mitos/protocol";
import type { Clock } from "../clock.ts";
import { ConnectionLost } from "./http.ts";
import { canceled } from "./registry-error.ts";

const attemptsMax = 5;
const firstPauseMs = 500;
/** A registry that wants to be left alone for longer is: whoever waits is told. */
const pauseMsMax = 60_000;

export interface Attempt {
  /** From 0; begins anew after progress. */
  readonly number: number;
  /** Something was gained: what fails after it has all of its attempts again. The caller bounds how often. */
  progress(): void;
}

/** Works again after a lost connection, an overloaded or a failing registry, with growing pauses or the one it asks for. Five times at most. */
export async function withRetries<T>(
  work: (attempt: Attempt) => Promise<T>,
  { clock, signal }: { clock: Clock; signal?: AbortSignal | undefined },
): Promise<T> {
  let number = 0;
  for (;;) {
    if (signal?.aborted) throw canceled();
    let isFurther = false;
    try {
      return await work({ number, progress: () => (isFurther = true) });
    } catch (error) {
      if (signal?.aborted) throw canceled();
      number = isFurther ? 1 : number + 1;
      const askedMs = error instanceof MitosError ? error.detail.retryAfterMs : undefined;
      if (!isWorthAnother(error) || number >= attemptsMax || (askedMs ?? 0) > pauseMsMax) throw error;
      // Spread, so that those who failed together do not come back together.
      await pause(clock, askedMs ?? firstPauseMs * 2 ** (number - 1) * (0.75 + Math.random() / 2), signal);
    }
  }
}

function isWorthAnother(error: unknown): boolean {
  return error instanceof ConnectionLost || (error instanceof MitosError && error.code === "unavailable");
}

async function pause(clock: Clock, ms: number, signal: AbortSignal | undefined): Promise<void> {
  await new Promise<void>((resolve) => {
    const cancel = clock.after(ms, done);
    signal?.addEventListener("abort", done, { once: true });
    function done(): void {
      cancel();
      signal?.removeEventListener("abort", done);
      resolve();
    }
  });
}
