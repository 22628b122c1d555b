import { limits, MitosError, type SandboxId } from "@mitos/protocol";
import type { EndCause } from "./actions.ts";
import type { Core } from "./core.ts";
import type { Machine, MachineExit } from "./driver.ts";
import type { Entry, Live } from "./sandboxes.ts";
import { endedError } from "./states.ts";
import { livingDescendants } from "./tree.ts";

/** Timers are asked again at least this often: a suspended host or a stepped clock moves deadlines under a running timer. */
const timerMsMax = 60_000;

// ---------------------------------------------------------------- terminate

/**
 * Ends a sandbox for good and resolves when nothing of it is left. It waits for no other operation: those that are under way on the
 * sandbox find it ended and clean up what they made.
 */
export async function terminate(core: Core, id: SandboxId, options: { subtree?: boolean } = {}): Promise<void> {
  const entry = core.sandboxes.find(id);
  if (options.subtree) {
    await Promise.all([endIfAlive(core, entry), endDescendants(core, entry)]);
    return;
  }
  // Ended already: the wish is fulfilled, however often it is repeated.
  await endIfAlive(core, entry);
}

/** Ends until nothing is left: a fork that was under way may have put a child there meanwhile. */
async function endDescendants(core: Core, entry: Entry): Promise<void> {
  for (let living = livingDescendants(core, entry); living.length > 0; living = livingDescendants(core, entry)) {
    await Promise.all(living.map((child) => endIfAlive(core, child)));
  }
}

function endIfAlive(core: Core, entry: Entry): Promise<void> {
  return endSandbox(core, entry, "terminated");
}

/** The one way in which a sandbox is ended by wish: by a caller, its deadline, or its idle time-out. */
export async function endSandbox(core: Core, entry: Entry, cause: EndCause): Promise<void> {
  const { saved } = entry;
  if (core.sandboxes.end(entry, "ended", cause)) {
    core.log.info({ sandbox: entry.record.id, cause }, "sandbox ended");
    await dropMachine(entry, cause);
  }
  // Whoever held the sandbox meanwhile has put away what it was making.
  await entry.mutex.run(async () => {
    await dropMachine(entry, cause);
    entry.saved = null;
  });
  // A fork may still read it; it needs nothing that is held here.
  await saved?.discard();
}

async function dropMachine(entry: Entry, reason: string): Promise<void> {
  const { live } = entry;
  if (!live) return;
  entry.live = null;
  live.guest.close(endedError(entry.record));
  await live.machine.end(reason);
}

// ---------------------------------------------------------------- what happens by itself

const failureOf = {
  exited: "exited",
  killed: "killed",
  oom_killed: "oom_killed",
  lost: "lost",
  terminated: "killed",
} as const satisfies Record<Exclude<MachineExit["reason"], "deadline">, EndCause>;

/** The machine of a sandbox whose state says that it has one. */
export function requireLive({ record, live }: Entry): Live {
  if (!live) throw new Error(`broken invariant: sandbox ${record.id} is ${record.state} without a machine`);
  return live;
}

/** From now on the sandbox is served by this machine, and ends when it does. Also right for a machine that has ended already. */
export function attach(core: Core, entry: Entry, live: Live): void {
  entry.live = live;
  void live.machine.exited.then((exit) => machineExited(core, entry, live, exit));
  // Changed while the machine was started: nobody could tell it then. One that cannot be told is ended from here when it is due.
  tellDeadline(entry, live).catch((error: unknown) => {
    core.log.warn({ sandbox: entry.record.id, error: String(error) }, "a machine could not be told its sandbox's new deadline");
  });
}

/** Tells the machine the deadline of its sandbox, unless it knows it. The machine keeps it by itself when this server is gone. */
export async function tellDeadline({ record: { deadlineMs } }: Entry, live: Live): Promise<void> {
  if (live.toldDeadlineMs === deadlineMs) return;
  live.toldDeadlineMs = deadlineMs;
  try {
    await live.machine.setDeadline(deadlineMs);
  } catch (error) {
    delete live.toldDeadlineMs;
    throw error;
  }
}

/** A machine ended that nobody ended here: its program exited, the kernel killed it, or its shim kept the deadline. */
function machineExited(core: Core, entry: Entry, live: Live, exit: MachineExit): void {
  if (entry.live !== live) return;
  entry.live = null;
  recordExit(core, entry, exit);
  live.guest.close(endedError(entry.record));
}

/** Also for machines of an earlier server. */
export function recordExit(core: Core, entry: Entry, exit: MachineExit): void {
  const fields = { sandbox: entry.record.id, reason: exit.reason, detail: exit.detail };
  if (exit.reason === "deadline") {
    if (core.sandboxes.end(entry, "ended", "time-out")) core.log.info(fields, "sandbox ended");
    return;
  }
  if (entry.record.state === "failed") return;
  if (core.sandboxes.end(entry, "failed", failureOf[exit.reason], exit.detail)) core.log.warn(fields, "sandbox failed");
}

/** How long a machine whose link has ended may take to say by itself why it ended, before it is ended for it. */
const lastWordsMs = 500;

/**
 * A link that ended or broke its own rules cannot be trusted again: its machine ends, which is reported as any other exit. A machine that
 * is dying already is let: ended from here, it could not say that it died of memory.
 */
export function linkLost(core: Core, entry: Entry, machine: Machine, error: Error): void {
  core.counters.linksLost += 1;
  core.log.info({ sandbox: entry.record.id, error: error.message }, "the link to a sandbox was lost");
  const timer = setTimeout(() => void machine.end(`link lost: ${error.message}`), lastWordsMs);
  void machine.exited.then(() => clearTimeout(timer));
}

// ---------------------------------------------------------------- time

/** @throws not_found, sandbox_not_running, idle_timeout, timeout_too_large, invalid_input */
export async function setTimeoutOf(core: Core, id: SandboxId, timeoutSeconds: number): Promise<{ deadlineMs: number }> {
  const deadlineMs = deadlineAfter(core, timeoutSeconds, id);
  const entry = core.sandboxes.require(id, "setTimeout");
  core.sandboxes.patch(entry, { deadlineMs });
  // A machine that is still being started gets it from the record, at the latest when it is attached.
  if (entry.live) await tellDeadline(entry, entry.live);
  return { deadlineMs };
}

/** @throws invalid_input, timeout_too_large */
export function deadlineAfter(core: Core, timeoutSeconds: number, sandbox: SandboxId): number {
  requireTimeout(timeoutSeconds, sandbox);
  return Math.round(core.clock.nowMs() + timeoutSeconds * 1000);
}

/** @throws invalid_input, timeout_too_large */
export function requireTimeout(timeoutSeconds: number, sandbox: SandboxId): void {
  if (!Number.isFinite(timeoutSeconds) || timeoutSeconds <= 0) {
    throw new MitosError("invalid_input", { cause: "a time-out must be a positive number of seconds" });
  }
  if (timeoutSeconds > limits.timeoutSecondsCounted) {
    throw new MitosError("timeout_too_large", {
      cause: `${timeoutSeconds} s is above ${limits.timeoutSecondsCounted} s`,
      context: { sandbox, requested_s: timeoutSeconds, max_timeout_s: limits.timeoutSecondsCounted },
    });
  }
}

/** Keeps one timer per sandbox that has a deadline or an idle time-out, and ends the sandbox when it is due. */
export class Deadlines {
  readonly #core: Core;
  readonly #timers = new Map<Entry, () => void>();

  constructor(core: Core) {
    this.#core = core;
    core.sandboxes.onChange = (entry) => this.arm(entry);
  }

  /** Looks at the sandbox anew; called after each change of its record, and when it is forgotten. */
  arm(entry: Entry): void {
    this.#timers.get(entry)?.();
    this.#timers.delete(entry);
    if (!this.#core.sandboxes.has(entry)) return;
    const nowMs = this.#core.clock.nowMs();
    const next = nextLook(entry, nowMs);
    if (!next) return;
    const delayMs = Math.min(timerMsMax, Math.max(0, next.atMs - nowMs));
    this.#timers.set(
      entry,
      this.#core.clock.after(delayMs, () => this.#wake(entry)),
    );
  }

  stop(): void {
    for (const cancel of this.#timers.values()) cancel();
    this.#timers.clear();
    this.#core.sandboxes.onChange = () => {};
  }

  #wake(entry: Entry): void {
    const nowMs = this.#core.clock.nowMs();
    const next = nextLook(entry, nowMs);
    if (!next?.cause || next.atMs > nowMs) {
      this.arm(entry);
      return;
    }
    endSandbox(this.#core, entry, next.cause).catch((error: unknown) => {
      this.#core.log.error({ sandbox: entry.record.id, error: String(error) }, "a sandbox whose time was up could not be cleaned up");
    });
  }
}

interface NextLook {
  readonly atMs: number;
  /** Null = it cannot be due then; only the question has to be asked again. */
  readonly cause: "time-out" | "idle" | null;
}

/** The absolute deadline holds in every state; the idle time-out only while the sandbox runs and nothing goes on in it. */
function nextLook(entry: Entry, nowMs: number): NextLook | null {
  const { state, deadlineMs, idleTimeoutSeconds, end } = entry.record;
  if (end) return null;
  const deadline: NextLook | null = deadlineMs === null ? null : { atMs: deadlineMs, cause: "time-out" };
  if (state !== "running" || idleTimeoutSeconds === null) return deadline;
  const idleMs = idleTimeoutSeconds * 1000;
  const { idleSinceMs } = entry.activity;
  // A look one idle period from now cannot be late: what goes on now ends after now.
  const idle: NextLook = idleSinceMs === null ? { atMs: nowMs + idleMs, cause: null } : { atMs: idleSinceMs + idleMs, cause: "idle" };
  return deadline && deadline.atMs <= idle.atMs ? deadline : idle;
}
