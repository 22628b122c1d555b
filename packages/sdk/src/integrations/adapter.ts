import type { Sandbox } from "../sandbox.ts";
import { type BoundTools, bindTools, type ToolOptions } from "./tools.ts";

/** What the adapter objects have in common: a sandbox of their own with its tools. With `await using` it ends with the block. */
export abstract class SandboxAdapter implements AsyncDisposable {
  readonly sandbox: Sandbox;
  protected readonly options: ToolOptions;
  protected readonly bound: BoundTools;

  constructor(sandbox: Sandbox, options: ToolOptions = {}) {
    this.sandbox = sandbox;
    this.options = options;
    this.bound = bindTools(sandbox, options);
  }

  get id(): string {
    return this.sandbox.id;
  }

  /** Ends the sandbox and the children that the fork tool has made; adapters that `fork` returned are their owners' to close. */
  async close(): Promise<void> {
    try {
      await this.bound.endChildren();
    } finally {
      await this.sandbox[Symbol.asyncDispose]();
    }
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}
