import { byteSize } from "../output.ts";
import type { Style } from "../style.ts";
import { shortDigest } from "./lines.ts";
import { LogLines } from "./log-lines.ts";
import type { ProgressEvent } from "./report.ts";
import { bar, cut, duration, labelOf, oneLine, phases } from "./text.ts";

export interface Line {
  readonly text: string;
  readonly style?: Style | undefined;
}

interface Layer {
  readonly digest: string;
  state: string;
  doneBytes: number;
  totalBytes: number;
}

/** What is under way: a step, or a part of a build that is none. */
interface Running {
  readonly label: string;
  /** Of a step; null for a phase. */
  readonly step: number | null;
  readonly sinceMs: number;
}

const layersMax = 8;
const logLinesMax = 6;
const barWidth = 20;
const frames = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏";

/** What has happened so far: lines that stay, and what is under way. Draws nothing itself. */
export class BuildView {
  readonly #layers = new Map<string, Layer>();
  readonly #log = new LogLines();
  readonly #lastLines: string[] = [];
  #finished: Line[] = [];
  #running: Running | undefined;
  #sending: { source: string; doneBytes: number; totalBytes: number } | undefined;

  apply(event: ProgressEvent, nowMs: number): void {
    switch (event.kind) {
      case "phase":
        this.#endRunning(nowMs);
        if (event.phase === "step") break;
        this.#begin({ label: `${phases[event.phase] ?? event.phase} ${labelOf(event.detail)}`.trimEnd(), step: null, sinceMs: nowMs });
        break;
      case "layer":
        this.#layer(event);
        break;
      case "context":
        this.#sending = event.state === "sending" ? event : undefined;
        if (event.state === "sent") this.#finish(`sent ${labelOf(event.source)}, ${byteSize(event.totalBytes)}`);
        break;
      case "step":
        this.#step(event, nowMs);
        break;
      case "log":
        for (const line of this.#log.add(event.step, event.stream, event.text)) this.#logLine(line);
        break;
      case "warning":
        this.#finished.push({ text: `! ${labelOf(event.text)}`, style: "yellow" });
        break;
      case "failed":
        this.#fail(nowMs);
        break;
      default:
        this.#endRunning(nowMs);
    }
  }

  /** Lines that will not change any more, once. */
  takeFinished(): readonly Line[] {
    const finished = this.#finished;
    this.#finished = [];
    return finished;
  }

  /** What is under way, at most so wide and so high. */
  frame(width: number, height: number, nowMs: number, tick: number): readonly Line[] {
    const spin = frames[tick % frames.length]!;
    const lines: Line[] = [];
    if (this.#sending) lines.push({ text: `${spin} sending ${labelOf(this.#sending.source)} ${amount(this.#sending, width)}` });
    if (this.#running) {
      const { label, sinceMs } = this.#running;
      const elapsed = ` ${duration(nowMs - sinceMs)}`;
      lines.push({ text: `${cut(`${spin} ${label}`, width - elapsed.length)}${elapsed}` });
    }
    const layers = [...this.#layers.values()].filter(({ state }) => state !== "done" && state !== "shared");
    // Those that wait are not worth a line.
    const active = layers.filter(({ state }) => state !== "waiting").slice(0, layersMax);
    for (const layer of active) {
      const what = layer.state === "unpacking" ? "unpacking" : amount(layer, width);
      lines.push({ text: `    ${shortDigest(layer.digest)} ${what}`, style: "dim" });
    }
    const more = layers.length - active.length;
    if (more > 0) lines.push({ text: `    and ${more} more layer${more === 1 ? "" : "s"}`, style: "dim" });
    for (const line of this.#lastLines) lines.push({ text: `    ${line}`, style: "dim" });
    return lines.slice(0, Math.max(1, height)).map(({ text, style }) => ({ text: cut(text, width), style }));
  }

  #begin(running: Running): void {
    this.#running = running;
    this.#lastLines.length = 0;
  }

  #layer({ digest, state, doneBytes, totalBytes }: Extract<ProgressEvent, { kind: "layer" }>): void {
    this.#layers.set(digest, { digest, state, doneBytes, totalBytes });
  }

  #step({ index, type, label, state, ms }: Extract<ProgressEvent, { kind: "step" }>, nowMs: number): void {
    const name = `step ${index} ${type} ${labelOf(label)}`.trimEnd();
    if (state === "running") {
      this.#endRunning(nowMs);
      this.#begin({ label: name, step: index, sinceMs: nowMs });
      return;
    }
    if (state === "cached") {
      this.#endRunning(nowMs);
      this.#finish(`${name}, cached`);
      return;
    }
    for (const line of this.#log.finish(index)) this.#logLine(line);
    if (state === "failed") this.#failed(name, ms);
    else this.#finish(`${name}, ${duration(ms)}`);
    this.#running = undefined;
    this.#lastLines.length = 0;
  }

  /** A phase ends when the next thing begins. */
  #endRunning(nowMs: number): void {
    if (!this.#running) return;
    const { label, step, sinceMs } = this.#running;
    const layers = [...this.#layers.values()];
    const shared = layers.filter(({ state }) => state === "shared").length;
    const bytes = layers.filter(({ state }) => state === "done").reduce((sum, { totalBytes }) => sum + totalBytes, 0);
    const what = layers.length > 0 ? `, ${layers.length} layers (${shared} there already), ${byteSize(bytes)}` : "";
    if (step === null) this.#finish(`${label}${what}, ${duration(nowMs - sinceMs)}`);
    this.#layers.clear();
    this.#running = undefined;
    this.#lastLines.length = 0;
  }

  #finish(text: string): void {
    this.#finished.push({ text: `✓ ${text}`, style: undefined });
  }

  #fail(nowMs: number): void {
    if (this.#running) this.#failed(this.#running.label, nowMs - this.#running.sinceMs);
    this.#running = undefined;
    this.#sending = undefined;
    this.#layers.clear();
    this.#lastLines.length = 0;
  }

  /** With what it last printed, which would go with the frame. */
  #failed(label: string, ms: number): void {
    this.#finished.push({ text: `✗ ${label}, ${duration(ms)}`, style: "red" });
    this.#finished.push(...this.#lastLines.map((line) => ({ text: `    ${line}` })));
  }

  #logLine(line: string): void {
    const text = oneLine(line);
    if (text.trim() === "") return;
    this.#lastLines.push(text);
    if (this.#lastLines.length > logLinesMax) this.#lastLines.shift();
  }
}

function amount({ doneBytes, totalBytes }: { doneBytes: number; totalBytes: number }, width: number): string {
  const numbers = `${byteSize(doneBytes)} of ${byteSize(totalBytes)}`;
  return width < 60 ? numbers : `${bar(doneBytes, totalBytes, barWidth)} ${numbers}`;
}
