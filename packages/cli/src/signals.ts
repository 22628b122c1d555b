import { CommandError, exitCodes } from "./exit.ts";

/** A Ctrl-C can arrive twice: from the terminal, and from the process that started this one and passes it on. */
const sameKeyMs = 300;

/** An AbortSignal for Ctrl-C and for a polite kill, so that a command can clean up before it ends. A second one ends at once. */
export interface Interrupt extends Disposable {
  readonly signal: AbortSignal;
}

const active = new Set<AbortController>();

export function interruptible(): Interrupt {
  const controller = new AbortController();
  let firstAt = 0;
  const handle = (name: NodeJS.Signals) => {
    if (controller.signal.aborted) {
      if (performance.now() - firstAt > sameKeyMs) process.exit(exitCodes.interrupted);
      return;
    }
    firstAt = performance.now();
    controller.abort(interrupted(`by ${name}`));
  };
  const names = ["SIGINT", "SIGTERM", "SIGHUP"] as const;
  for (const name of names) process.on(name, handle);
  active.add(controller);
  return {
    signal: controller.signal,
    [Symbol.dispose]() {
      active.delete(controller);
      for (const name of names) process.off(name, handle);
    },
  };
}

/** Lets whatever can be interrupted clean up. @returns whether there is anything */
export function interruptAll(why: string): boolean {
  for (const controller of active) controller.abort(interrupted(why));
  return active.size > 0;
}

function interrupted(why: string): CommandError {
  return new CommandError(`interrupted ${why}`, "what was under way has been given up", "Run it again.", exitCodes.interrupted);
}
