/** What is being done, for whoever waits: on standard error, so that the table alone is on standard output. */
export interface Progress extends Disposable {
  say(what: string): void;
}

/** On a terminal one line that changes; elsewhere a line for each. */
export function showProgress(stream: NodeJS.WriteStream = process.stderr): Progress {
  const started = performance.now();
  const show = (text: string) => stream.write(stream.isTTY ? `\r\u001b[K${text}` : `${text}\n`);
  return {
    say(what) {
      show(`${((performance.now() - started) / 1000).toFixed(0).padStart(5)} s  ${what}`);
    },
    [Symbol.dispose]() {
      if (stream.isTTY) show("");
    },
  };
}
