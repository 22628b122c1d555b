import { StringDecoder } from "node:string_decoder";

/** A line that is longer is told in pieces. */
const lineCharactersMax = 16 * 1024;
/** What an error shows of a program's output. */
export const tailCharacters = 4_096;

/** Turns what a program writes into whole lines as they come, and keeps the end of it all. */
export class Output {
  readonly #tell: (stream: "stdout" | "stderr", text: string) => void;
  readonly #streams = { stdout: new StringDecoder("utf8"), stderr: new StringDecoder("utf8") };
  readonly #begun = { stdout: "", stderr: "" };
  #tail = "";

  constructor(tell: (stream: "stdout" | "stderr", text: string) => void) {
    this.#tell = tell;
  }

  add(stream: "stdout" | "stderr", data: Uint8Array): void {
    this.#append(stream, this.#streams[stream].write(Buffer.from(data.buffer, data.byteOffset, data.byteLength)));
  }

  /** Nothing more comes: also what ended without a new line is told. */
  end(): void {
    for (const stream of ["stdout", "stderr"] as const) {
      this.#append(stream, this.#streams[stream].end());
      if (this.#begun[stream]) this.#tell(stream, this.#begun[stream]);
      this.#begun[stream] = "";
    }
  }

  get tail(): string {
    return this.#tail.trimEnd();
  }

  #append(stream: "stdout" | "stderr", text: string): void {
    this.#tail = (this.#tail + text).slice(-tailCharacters);
    const all = this.#begun[stream] + text;
    const whole = all.length > lineCharactersMax && !all.includes("\n") ? all.length : all.lastIndexOf("\n") + 1;
    if (whole > 0) this.#tell(stream, all.slice(0, whole));
    this.#begun[stream] = all.slice(whole);
  }
}
