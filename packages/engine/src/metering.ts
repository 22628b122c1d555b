import { MitosError, type SandboxId } from "@mitos/protocol";
import type { NodeUsage, SandboxUsage } from "./actions.ts";
import type { Core } from "./core.ts";
import { type Machine, type MachineMetering, type Metering, storedBytes } from "./driver.ts";
import { Semaphore } from "./mutex.ts";
import type { Entry } from "./sandboxes.ts";

/** Machines that are asked at the same time: each answer is some reading in /proc, which costs processor time. */
const asksAtOnce = 4;
/** A machine that has not answered by then is reported with what it used last. */
const answerMsMax = 2000;
/** Whoever polls faster gets the same report again, so that no number of pollers can load the machine. */
const reportMsMax = 1000;

/** What all sandboxes use. One report at a time, and at most one open question to each machine. */
export class Meters {
  readonly #core: Core;
  readonly #asks = new Semaphore(asksAtOnce);
  readonly #asked = new WeakMap<Machine, Promise<MachineMetering>>();
  readonly #last = new WeakMap<Machine, MachineMetering>();
  #report: { readonly usage: Promise<NodeUsage>; readonly validUntilMs: number } | undefined;

  constructor(core: Core) {
    this.#core = core;
  }

  /** Never fails: what could not be measured is marked as stale. */
  all(): Promise<NodeUsage> {
    const nowMs = performance.now();
    if (this.#report && nowMs < this.#report.validUntilMs) return this.#report.usage;
    const usage = this.#measureAll();
    // Valid while it is being made, and for a while from then on.
    this.#report = { usage, validUntilMs: Number.POSITIVE_INFINITY };
    void usage.then(() => {
      this.#report = { usage, validUntilMs: performance.now() + reportMsMax };
    });
    return usage;
  }

  async one(id: SandboxId): Promise<Metering> {
    const { live, egress } = this.#core.sandboxes.require(id, "meter");
    if (!live) throw new MitosError("unavailable", { cause: `sandbox ${id} has no machine now` });
    return { ...(await live.machine.meter()), egressBytes: egress.sentBytes, egressReceivedBytes: egress.receivedBytes };
  }

  async #measureAll(): Promise<NodeUsage> {
    const { sandboxes, templates } = this.#core;
    const alive = [...sandboxes.all()].filter(({ record }) => record.end === null);
    return {
      sandboxes: await Promise.all(alive.map((entry) => this.#measure(entry))),
      templates: [...templates].flatMap(([id, { built }]) => (built ? [{ id, snapshotBytes: storedBytes(built.snapshot.snapshot) }] : [])),
    };
  }

  async #measure(entry: Entry): Promise<SandboxUsage> {
    const { record, live, saved, egress } = entry;
    const { metering, isStale } = live ? await this.#ask(live.machine) : { metering: undefined, isStale: false };
    return {
      id: record.id,
      templateId: record.templateId,
      memoryBytes: metering?.memoryBytes ?? 0,
      sharedBytes: metering?.sharedBytes ?? 0,
      egressBytes: egress.sentBytes,
      // A machine writes into its own memory; only a pause puts it on the disk.
      diskBytes: saved?.snapshot.bytes ?? 0,
      isStale,
    };
  }

  async #ask(machine: Machine): Promise<{ metering: MachineMetering | undefined; isStale: boolean }> {
    const { promise: late, resolve } = Promise.withResolvers<undefined>();
    const timer = setTimeout(resolve, answerMsMax, undefined);
    try {
      const metering = await Promise.race([this.#measurement(machine), late]);
      if (metering) return { metering, isStale: false };
    } catch {
      // It ends just now, or its shim is gone: the next report knows.
    } finally {
      clearTimeout(timer);
    }
    return { metering: this.#last.get(machine), isStale: true };
  }

  /** A machine that owes an answer is not asked again. */
  #measurement(machine: Machine): Promise<MachineMetering> {
    const open = this.#asked.get(machine);
    if (open) return open;
    const asked = this.#asks.run(() => machine.meter({ shared: true }));
    this.#asked.set(machine, asked);
    asked
      .then((metering) => this.#last.set(machine, metering))
      .catch(() => undefined)
      .finally(() => this.#asked.delete(machine));
    return asked;
  }
}
