import { byteSize } from "../output.ts";
import type { Style } from "../style.ts";
import { LogLines } from "./log-lines.ts";
import type { ProgressEvent, Report } from "./report.ts";
import { duration, labelOf, oneLine } from "./text.ts";

/** A line for each thing that happens, for files and for the logs of other machines. */
export class LineReport implements Report {
  readonly #print: (line: string, style?: Style) => void;
  readonly #log = new LogLines();
  readonly #contexts = new Set<number>();

  constructor(print: (line: string, style?: Style) => void) {
    this.#print = print;
  }

  show(event: ProgressEvent): void {
    switch (event.kind) {
      case "phase":
        // Of a step its own event tells.
        if (event.phase !== "step") this.#print(tagged(event.phase === "resolve" ? "find" : event.phase, labelOf(event.detail)));
        break;
      case "layer":
        if (event.state === "done") this.#print(tagged("layer", `${shortDigest(event.digest)} ${byteSize(event.totalBytes)}`));
        else if (event.state === "shared") this.#print(tagged("cached", `layer ${shortDigest(event.digest)}`));
        break;
      case "context":
        if (event.state !== "sending" || this.#contexts.has(event.step)) break;
        this.#contexts.add(event.step);
        this.#print(tagged("send", `${labelOf(event.source)} ${byteSize(event.totalBytes)}`));
        break;
      case "step":
        this.#step(event);
        break;
      case "log":
        for (const line of this.#log.add(event.step, event.stream, event.text)) this.#logLine(event.step, line);
        break;
      case "warning":
        this.#print(tagged("warn", labelOf(event.text)), "yellow");
        break;
      default:
        this.#finishLogs(null);
    }
  }

  [Symbol.dispose](): void {
    this.#finishLogs(null);
  }

  #step({ index, type, label, state, ms }: Extract<ProgressEvent, { kind: "step" }>): void {
    const name = `step ${index} ${type} ${labelOf(label)}`.trimEnd();
    if (state === "running") this.#print(tagged("build", name));
    else if (state === "cached") this.#print(tagged("cached", name));
    else {
      this.#finishLogs(index);
      if (state === "failed") this.#print(tagged("failed", `${name} after ${duration(ms)}`), "red");
      else this.#print(tagged("done", `step ${index} in ${duration(ms)}`));
    }
  }

  #finishLogs(step: number | null): void {
    for (const line of this.#log.finish(step)) this.#logLine(step, line);
  }

  #logLine(step: number | null, line: string): void {
    this.#print(`${(step === null ? "" : String(step)).padStart(6)} | ${oneLine(line)}`);
  }
}

/** `[BUILD ] …` */
function tagged(tag: string, text: string): string {
  return `[${tag.toUpperCase().padEnd(6)}] ${text}`.trimEnd();
}

export function shortDigest(digest: string): string {
  return digest.replace(/^sha256:/, "").slice(0, 12);
}
