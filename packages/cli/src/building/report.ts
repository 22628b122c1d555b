import type { BuildEvent } from "@mitos/sdk";
import type { ContextEvent } from "@mitos/sdk/build";
import { print } from "../output.ts";
import { paint } from "../style.ts";
import { LineReport } from "./lines.ts";
import { LiveReport } from "./live.ts";

/** What is told while something is built, pulled or pushed. */
export type ProgressEvent = BuildEvent | ContextEvent;

/** Shows events as they come. What it has begun to draw is whole, and the cursor on a line of its own, when it is disposed of. */
export interface Report extends Disposable {
  show(event: ProgressEvent): void;
}

/** On a terminal a view that is drawn anew, elsewhere a line for each thing that happens, as JSON the events themselves. */
export function newReport(asJson: boolean): Report {
  if (asJson) return { show: printEvent, [Symbol.dispose]: () => {} };
  return process.stdout.isTTY && process.env.TERM !== "dumb" ? new LiveReport(process.stdout) : lineReport();
}

export function lineReport(): Report {
  return new LineReport((line, style) => print(style ? paint(process.stdout, style, line) : line));
}

/** One object a line. */
export function printEvent(event: object): void {
  print(JSON.stringify(event));
}
