import type { NodeUsage, SandboxUsage } from "@mitos/engine";

/** The answer of `GET /v1/metering`: bytes and seconds, the keys as published clients of the node's operations know them. */
export interface MeteringReport {
  readonly Sandboxes: readonly SandboxReport[];
  readonly Templates: readonly TemplateReport[];
  readonly UsedCoWAware: number;
  readonly UsedNaive: number;
  readonly CoWSavings: number;
  readonly TotalUnique: number;
  readonly DiskUsedCoWAware: number;
  readonly DiskUsedNaive: number;
  readonly DiskCoWSavings: number;
  readonly DiskTotalUnique: number;
  readonly TotalGPUSeconds: number;
  /** Sandboxes whose machine did not answer in time: their figures are the last known ones. */
  readonly Stale: readonly string[];
}

export interface SandboxReport {
  readonly ID: string;
  readonly Template: string;
  readonly MemoryUnique: number;
  readonly MemoryShared: number;
  readonly DiskUnique: number;
  readonly DiskShared: number;
  readonly EgressBytes: number;
  readonly GPUCount: number;
  readonly GPUSeconds: number;
}

export interface TemplateReport {
  readonly Template: string;
  readonly ForkCount: number;
  readonly SharedOnce: number;
  readonly DiskSharedOnce: number;
}

/**
 * What is shared counts once for each template: the largest that one of its sandboxes shares. The naive figures are what the same
 * sandboxes would use if each had a copy of its own. A template's snapshot is the disk that its sandboxes share; it is there with or without
 * them.
 */
export function account({ sandboxes, templates }: NodeUsage): MeteringReport {
  const snapshots = new Map<string, number>(templates.map(({ id, snapshotBytes }) => [id, snapshotBytes]));
  const rows = sandboxes.map((usage) => sandboxReport(usage, snapshots.get(usage.templateId) ?? 0)).sort(by(({ ID }) => ID));
  const names = new Set([...rows.map(({ Template }) => Template), ...snapshots.keys()]);
  const groups = [...names].map((name) => templateReport(name, rows, snapshots.get(name) ?? 0)).sort(by(({ Template }) => Template));

  const TotalUnique = sum(rows, ({ MemoryUnique }) => MemoryUnique);
  const UsedCoWAware = TotalUnique + sum(groups, ({ SharedOnce }) => SharedOnce);
  const UsedNaive = TotalUnique + sum(rows, ({ MemoryShared }) => MemoryShared);
  const DiskTotalUnique = sum(rows, ({ DiskUnique }) => DiskUnique);
  const DiskUsedCoWAware = DiskTotalUnique + sum(groups, ({ DiskSharedOnce }) => DiskSharedOnce);
  // The snapshot of a template without sandboxes is there once either way.
  const unused = sum(groups, ({ ForkCount, DiskSharedOnce }) => (ForkCount === 0 ? DiskSharedOnce : 0));
  const DiskUsedNaive = DiskTotalUnique + sum(rows, ({ DiskShared }) => DiskShared) + unused;
  return {
    Sandboxes: rows,
    Templates: groups,
    UsedCoWAware,
    UsedNaive,
    CoWSavings: UsedNaive - UsedCoWAware,
    TotalUnique,
    DiskUsedCoWAware,
    DiskUsedNaive,
    DiskCoWSavings: DiskUsedNaive - DiskUsedCoWAware,
    DiskTotalUnique,
    TotalGPUSeconds: 0,
    Stale: sandboxes.filter(({ isStale }) => isStale).map(({ id }) => id),
  };
}

function sandboxReport(usage: SandboxUsage, snapshotBytes: number): SandboxReport {
  return {
    ID: usage.id,
    Template: usage.templateId,
    MemoryUnique: usage.memoryBytes,
    MemoryShared: usage.sharedBytes,
    DiskUnique: usage.diskBytes,
    DiskShared: snapshotBytes,
    EgressBytes: usage.egressBytes,
    GPUCount: 0,
    GPUSeconds: 0,
  };
}

function templateReport(name: string, rows: readonly SandboxReport[], snapshotBytes: number): TemplateReport {
  const group = rows.filter(({ Template }) => Template === name);
  return {
    Template: name,
    ForkCount: group.length,
    SharedOnce: group.reduce((largest, { MemoryShared }) => Math.max(largest, MemoryShared), 0),
    DiskSharedOnce: snapshotBytes,
  };
}

function sum<T>(rows: readonly T[], bytes: (row: T) => number): number {
  return rows.reduce((total, row) => total + bytes(row), 0);
}

function by<T>(key: (row: T) => string): (a: T, b: T) => number {
  return (a, b) => (key(a) < key(b) ? -1 : 1);
}
