import type { EndCause, SandboxEnd } from "./actions.ts";
import type { Sandboxes } from "./sandboxes.ts";

/** Who wants to know that a sandbox has ended or failed. */
export class Ends {
  readonly #listeners = new Set<(end: SandboxEnd) => void>();
  /** Those of before the engine was open, when nobody could listen yet. */
  readonly #found: SandboxEnd[] = [];
  #isOpen = false;

  constructor(sandboxes: Sandboxes) {
    sandboxes.onEnd = ({ record }) => this.#tell({ id: record.id, cause: record.end?.cause ?? ("lost" satisfies EndCause) });
  }

  /** From now on ends are told as they happen. */
  open(): void {
    this.#isOpen = true;
  }

  listen(listener: (end: SandboxEnd) => void): () => void {
    for (const end of this.#found) listener(end);
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  #tell(end: SandboxEnd): void {
    if (!this.#isOpen) this.#found.push(end);
    for (const listener of this.#listeners) listener(end);
  }
}
