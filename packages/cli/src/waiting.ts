import { Option } from "commander";
import { wholeNumber } from "./context.ts";
import { CommandError, exitCodes } from "./exit.ts";
import { withProgress } from "./progress.ts";
import { interruptible } from "./signals.ts";

export function timeoutFlag(): Option {
  return new Option("--timeout <seconds>", "give up waiting after this time (0: wait)").argParser(wholeNumber("--timeout", 0)).default(0);
}

/** A server answers when the sandbox runs, so there is nothing that could not be waited for. */
export function waitFlags(): readonly [Option, Option] {
  return [
    new Option("--wait", "wait until it runs, which a server always does"),
    new Option("--no-wait", "accepted for scripts of clusters, and without effect"),
  ];
}

/** A timer that is to wait for longer, some 24 days, fires at once. */
const timerMsMax = 2 ** 31 - 1;

/**
 * @param timeoutSeconds - 0 = as long as it takes. Its end is exit code 124.
 * @param progress - says how far it is. Default: what it is
 */
export async function waiting<T>(
  what: string,
  timeoutSeconds: number,
  work: (signal: AbortSignal) => Promise<T>,
  progress: string | (() => string) = what,
): Promise<T> {
  using interrupt = interruptible();
  if (timeoutSeconds === 0) return withProgress(progress, work(interrupt.signal));
  const deadline = AbortSignal.timeout(Math.min(timeoutSeconds * 1000, timerMsMax));
  const elapsed = new Promise<never>((_, reject) => {
    deadline.addEventListener("abort", () => reject(waitElapsed(what, timeoutSeconds)), { once: true });
  });
  return withProgress(progress, Promise.race([work(AbortSignal.any([interrupt.signal, deadline])), elapsed]));
}

function waitElapsed(what: string, seconds: number): CommandError {
  const remedy = "Look with `mitos sandbox ls` at what exists now, and give it more time.";
  return new CommandError(`${what} was not done in time`, `${seconds} s have passed`, remedy, exitCodes.timedOut);
}
