import { randomBytes } from "node:crypto";
import { availableParallelism } from "node:os";
import { MitosError, type TemplateId } from "@mitos/protocol";
import type { Log, SelfForkGate, SnapshotKind } from "./actions.ts";
import type { Admission } from "./admission.ts";
import type { BuildLogs } from "./builds/events.ts";
import type { RunningStep } from "./builds/steps.ts";
import type { Clock } from "./clock.ts";
import type { Driver } from "./driver.ts";
import type { EgressGate } from "./egress/gate.ts";
import type { ConnectGuest } from "./guest.ts";
import type { Semaphore } from "./mutex.ts";
import type { MachinePool } from "./pool/pool.ts";
import type { ReadyDemand } from "./ready-demand.ts";
import type { Sandboxes } from "./sandboxes.ts";
import type { SnapshotPlaces } from "./snapshots.ts";
import { storageError } from "./storage-error.ts";
import type { StepStore } from "./store/steps.ts";
import type { TemplateStore } from "./store/templates.ts";
import type { Images, Layers } from "./stores.ts";
import type { TemplateEntry } from "./templates.ts";
import type { UnderWay } from "./under-way.ts";
import type { Collector } from "./usage.ts";

/** What every action works with: one of these per open engine. */
export interface Core {
  readonly driver: Driver;
  readonly connectGuest: ConnectGuest;
  readonly egress: EgressGate;
  readonly log: Log;
  readonly clock: Clock;
  readonly admission: Admission;
  readonly places: SnapshotPlaces;
  readonly sandboxes: Sandboxes;
  readonly templateStore: TemplateStore;
  readonly templates: Map<TemplateId, TemplateEntry>;
  readonly layers: Layers;
  readonly images: Images;
  readonly buildLogs: BuildLogs;
  readonly stepStore: StepStore;
  /** Steps of builds that run now, by what makes them one. */
  readonly runningSteps: Map<string, RunningStep>;
  readonly collector: Collector;
  /** Machines that start at once: restores are processor-bound, so more of them only make each one slower. */
  readonly starts: Semaphore;
  readonly counters: Counters;
  readonly readyDemand: ReadyDemand;
  readonly pool: MachinePool;
  /** What forks that sandboxes ask for themselves pass through. */
  selfForkGate: SelfForkGate;
  /** Actions, and the forks that sandboxes ask for themselves. */
  readonly underWay: UnderWay;
}

export const ungatedSelfForks: SelfForkGate = ({ source, keyId }, fork) => {
  if (keyId === null) return fork();
  throw new MitosError("unavailable", { cause: `sandbox ${source} asks to be forked before the server is there that knows its key` });
};

export class Counters {
  readonly snapshots: Record<SnapshotKind, { count: number; bytes: number }> = {
    template: { count: 0, bytes: 0 },
    fork: { count: 0, bytes: 0 },
    pause: { count: 0, bytes: 0 },
  };
  linksLost = 0;
  readonly builds = { ok: 0, failed: 0, canceled: 0 };
  readonly steps = { run: 0, cached: 0 };

  saved(kind: SnapshotKind, bytes: number): void {
    this.snapshots[kind].count += 1;
    this.snapshots[kind].bytes += bytes;
  }
}

export const startsAtOnce = availableParallelism() + 1;

/** Of one length, never used twice. */
export function newMachineId(): string {
  return `m${randomBytes(8).toString("hex")}`;
}

/** A failure of driver or link, told as one of ours: what was tried, and the foreign error for the log. */
export function asMitosError(error: unknown, doing: string): MitosError {
  if (error instanceof MitosError) return error;
  const storage = storageError(error);
  if (storage) return storage;
  return new MitosError("internal", { cause: `${doing}: ${error instanceof Error ? error.message : String(error)}`, reason: error });
}
