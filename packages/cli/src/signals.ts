/** A Ctrl-C can arrive twice: from the terminal, and from the process that started this one and passes it on. */
const sameKeyMs = 300;

/** An AbortSignal for Ctrl-C and for a polite kill, so that a command can clean up before it ends. A second one ends at once. */
export interface Interrupt extends Disposable {
  readonly signal: AbortSignal;
}

export function interruptible(): Interrupt {
  const controller = new AbortController();
  let firstAt = 0;
  const handle = (name: NodeJS.Signals) => {
    if (controller.signal.aborted) {
      if (performance.now() - firstAt > sameKeyMs) process.exit(130);
      return;
    }
    firstAt = performance.now();
    controller.abort(new Error(`interrupted by ${name}`));
  };
  const names = ["SIGINT", "SIGTERM", "SIGHUP"] as const;
  for (const name of names) process.on(name, handle);
  return {
    signal: controller.signal,
    [Symbol.dispose]() {
      for (const name of names) process.off(name, handle);
    },
  };
}
