import type { MitosError } from "@mitos/protocol";
import type { Runtime, Tunnel } from "./actions.ts";
import type { Machine, OwnerEntry } from "./driver.ts";

/** Who a machine becomes: payload of ADOPT (docs/link.md). */
export interface Adoption {
  readonly sandboxId: string;
  readonly templateId: string;
  readonly parentId: string | null;
  readonly generation: number;
  readonly env: Readonly<Record<string, string>>;
  readonly secrets: Readonly<Record<string, string>>;
  /** Whether secrets that the snapshot holds are dropped first. */
  readonly forgetSecrets: boolean;
  readonly deadlineMs: number | null;
  readonly forkBudget: number;
  readonly forksUsed: number;
  /** `programsMax` of its resources. */
  readonly processesMax: number;
  /**
   * Whom programs, terminals and kernels run as when a call names nobody: `name`, `uid`, `name:group` or `uid:gid`. Kept by the machine, its
   * snapshots and children. Absent or empty = as before; a machine starts with root.
   */
  readonly user?: string | undefined;
  /** Where they run when a call names no folder. Absolute. Absent or empty = as before; a machine starts with `/workspace`. */
  readonly cwd?: string | undefined;
}

/** The agent of one machine, as the engine's actions need it. */
export interface Guest {
  /**
   * Opens a link session, unless `greet` has. With `adoption` the machine gets its identity, in the same write; it is not served before this
   * resolves.
   */
  open(adoption: Adoption | null): Promise<void>;
  /** Opens a link session with a restored machine, which stays as it is until `open` gives it its identity. */
  greet(): Promise<void>;
  /** For a machine that was greeted and now waits: lets it do once what the first calls will do, so that they find their memory in place. */
  warm(): Promise<void>;
  /** Resolves when nothing is in flight; calls made from now on wait until `resume`. When it throws, both ends go on as if it was not asked. */
  quiesce(): Promise<{ resume(): Promise<void> }>;
  /**
   * Gives files their owners (`Driver.ownersOf`), before anything else happens in a machine whose root is made of layers. What `changes` tells
   * does not count them. A new owner makes a copy of the file where the machine keeps what it writes.
   *
   * @param options.copyBytesMax - of all these copies together: larger files that everybody may read then stay root's. Default: no limit, for
   *   machines whose scratch space lies on the disk; a part of the memory for others
   * @returns how many files stayed root's
   */
  setOwners(entries: readonly OwnerEntry[], options?: { readonly copyBytesMax?: number | undefined }): Promise<number>;
  /**
   * What programs have changed in the root file system since it was made, as the tar that `mitos-layers changes` reads (docs/link.md). Nothing
   * should run in the machine meanwhile: what changes while it is read may be told half. Leaving early ends it.
   * @throws unavailable, canceled, internal
   */
  changes(signal?: AbortSignal): AsyncIterable<Uint8Array>;
  warmKernel(language: string): Promise<{ available: boolean; detail: string }>;
  readonly runtime: Runtime;
  /** Ends every open stream with `error`. */
  close(error: MitosError): void;
}

export interface GuestHooks {
  /** A call or stream inside the sandbox begins; the answer ends it. */
  readonly onActivity: () => () => void;
  /** The guest asks for children of its own. */
  readonly onForkSelf: (count: number, label: string) => Promise<readonly string[]>;
  /** The guest wants out. */
  readonly egress: SandboxEgress;
  /** The link ended although nobody closed it: the machine broke the protocol or died. */
  readonly onLost: (error: Error) => void;
}

/** A connection that a program in the sandbox asks for, before and after it is accepted. */
export interface EgressStream extends Tunnel {
  accept(reply: Record<never, never>): Promise<void>;
  /** The stream is gone before both sides have ended it. */
  readonly signal: AbortSignal;
}

export interface EgressAnswer {
  readonly ports: readonly number[];
  readonly any: boolean;
}

/** What a sandbox may do outside. */
export interface SandboxEgress {
  /** Resolves when the connection is over. @throws permission_denied with the rule, unavailable, sandbox_exhausted, invalid_input */
  connect(host: string, port: number, stream: EgressStream): Promise<void>;
  /** @throws permission_denied with the rule, invalid_input */
  ports(name: string): EgressAnswer;
}

/** How the engine talks to a machine; tests of the engine bring their own. */
export type ConnectGuest = (machine: Machine, hooks: GuestHooks) => Guest;
