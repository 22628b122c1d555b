import type { BuildEvent, Connection, Sandbox } from "@mitos/sdk";
import { byteSize } from "../output.ts";
import { labelOf, phases } from "./text.ts";

/** What a new sandbox waits for, on one line: its template may have to be made of an image first. */
export class Creating {
  #phase = "";
  #isMakingTemplate = false;
  readonly #layers = new Map<string, { doneBytes: number; totalBytes: number }>();

  /**
   * A new sandbox, of which `text` tells how far it is.
   *
   * @param options - `signal` ends it at any time; `interrupt` only while its template is made: a sandbox that is half made could not
   *   be terminated
   */
  async create(
    connection: Connection,
    template: string,
    { signal, interrupt }: { signal?: AbortSignal; interrupt?: AbortSignal },
  ): Promise<Sandbox> {
    const { create } = await import("@mitos/sdk");
    const interrupted = new AbortController();
    const giveUp = () => {
      if (this.#isMakingTemplate && interrupt?.aborted) interrupted.abort(interrupt.reason);
    };
    const onEvent = (event: BuildEvent) => {
      this.note(event);
      giveUp();
    };
    interrupt?.addEventListener("abort", giveUp);
    try {
      return await create({ ...connection, template, signal: signal ?? interrupted.signal, onEvent });
    } finally {
      interrupt?.removeEventListener("abort", giveUp);
    }
  }

  note(event: BuildEvent): void {
    this.#isMakingTemplate = event.kind !== "done" && event.kind !== "failed";
    if (event.kind === "phase") {
      this.#phase = `${phases[event.phase] ?? event.phase} ${labelOf(event.detail)}`.trimEnd();
      this.#layers.clear();
    } else if (event.kind === "layer" && event.state !== "shared") {
      this.#layers.set(event.digest, {
        doneBytes: event.state === "done" ? event.totalBytes : event.doneBytes,
        totalBytes: event.totalBytes,
      });
    }
  }

  get text(): string {
    if (!this.#isMakingTemplate) return "creating the sandbox";
    const layers = [...this.#layers.values()];
    if (layers.length === 0) return this.#phase;
    const sum = (member: "doneBytes" | "totalBytes") => byteSize(layers.reduce((total, layer) => total + layer[member], 0));
    return `${this.#phase}, ${sum("doneBytes")} of ${sum("totalBytes")}`;
  }
}
