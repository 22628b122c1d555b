import { paint } from "../style.ts";
import type { ProgressEvent, Report } from "./report.ts";
import { widthOf } from "./text.ts";
import { BuildView, type Line } from "./view.ts";

const frameMs = 100;

/**
 * Draws a view on a terminal. Each frame is one write that goes over the one before it line by line, so that nothing flickers; what is
 * finished stays above it.
 */
export class LiveReport implements Report {
  readonly #stream: NodeJS.WriteStream;
  readonly #view = new BuildView();
  readonly #timer: NodeJS.Timeout;
  /** Cells of each line that was drawn last. */
  #drawn: number[] = [];
  #tick = 0;

  constructor(stream: NodeJS.WriteStream) {
    this.#stream = stream;
    this.#timer = setInterval(() => {
      this.#tick++;
      this.#draw();
    }, frameMs);
  }

  show(event: ProgressEvent): void {
    this.#view.apply(event, performance.now());
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
    this.#write(this.#view.takeFinished(), []);
  }

  #draw(): void {
    const { columns = 80, rows = 24 } = this.#stream;
    // A line as wide as the terminal would leave the cursor at one's discretion; one row is the cursor's own.
    const frame = this.#view.frame(columns - 1, rows - 2, performance.now(), this.#tick);
    this.#write(this.#view.takeFinished(), frame);
  }

  #write(finished: readonly Line[], frame: readonly Line[]): void {
    if (finished.length === 0 && frame.length === 0 && this.#drawn.length === 0) return;
    const { columns = 80 } = this.#stream;
    // A terminal that was made narrower has wrapped what was drawn.
    const rows = this.#drawn.reduce((sum, width) => sum + Math.max(1, Math.ceil(width / columns)), 0);
    const lines = [...finished, ...frame].map(({ text, style }) => `${style ? paint(this.#stream, style, text) : text}\x1b[K\n`);
    // Between the two marks a terminal that knows them shows nothing.
    this.#stream.write(`\x1b[?2026h${rows > 0 ? `\x1b[${rows}F` : ""}${lines.join("")}\x1b[J\x1b[?2026l`);
    this.#drawn = frame.map(({ text }) => widthOf(text));
  }
}
