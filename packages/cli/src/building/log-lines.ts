/** Puts the pieces of each step's output together to whole lines. */
export class LogLines {
  readonly #parts = new Map<string, string>();

  /** @returns the lines that are whole now */
  add(step: number | null, stream: string, text: string): string[] {
    const key = `${step} ${stream}`;
    const lines = ((this.#parts.get(key) ?? "") + text).split("\n");
    // A line that never ends is told in pieces.
    const rest = lines.at(-1)!.length > lineCharsMax ? "" : lines.pop()!;
    this.#parts.set(key, rest);
    return lines;
  }

  /** What the step left without an end of line. */
  finish(step: number | null): string[] {
    const rests = ["stdout", "stderr"].map((stream) => this.#parts.get(`${step} ${stream}`) ?? "");
    for (const stream of ["stdout", "stderr"]) this.#parts.delete(`${step} ${stream}`);
    return rests.filter((rest) => rest !== "");
  }
}

const lineCharsMax = 64 * 1024;
