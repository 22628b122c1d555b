import type { ConnectionOpts } from "./options.ts";
import { bind, Sandbox } from "./sandbox.ts";

/** What a client binds. */
export type E2BClientOpts = Omit<ConnectionOpts, "signal">;

/** A server and a key for all that is done through `client.Sandbox`; options of a call count before them. */
export class E2B {
  readonly Sandbox: typeof Sandbox;

  constructor(opts: E2BClientOpts = {}) {
    this.Sandbox = bind(Sandbox, opts);
  }
}
