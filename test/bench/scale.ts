import type { WarmUp } from "./warm-up.ts";

/** How much of everything is measured. */
export interface Scale {
  /** What a new server serves before. */
  readonly warmUp: WarmUp;
  /** What the interpreter of a forked parent holds: the first is promised something, the others show the curve. */
  readonly stateMiB: readonly [first: number, ...more: number[]];
  /** Children of the large fork. */
  readonly forkCount: number;
  readonly fileMiB: number;
  readonly clients: number;
  readonly clientSandboxes: number;
  /** How long clients work in each round. */
  readonly clientsMs: number;
  readonly idleChildren: number;
  /** How long processor time of idle machines is counted. */
  readonly idleMs: number;
  readonly waiting: number;
  /** From the first to the last the latency may grow no more than promised. */
  readonly sandboxes: readonly [first: number, ...more: number[]];
  readonly busySandboxes: number;
  /** Creates and forks at each of these sizes in each round. */
  readonly growthSamples: number;
  /** Execs beside a neighbour in each round. */
  readonly neighbourSamples: number;
}

export const fullScale: Scale = {
  // Cells and small files took half of their first time after about a hundred, and then no less. A create has little code that the others do not run.
  warmUp: { execs: 300, cells: 300, files: 100, largeFiles: 60, creates: 10 },
  stateMiB: [30, 256, 1024],
  forkCount: 16,
  fileMiB: 64,
  clients: 32,
  clientSandboxes: 8,
  clientsMs: 2_000,
  idleChildren: 100,
  idleMs: 5_000,
  waiting: 32,
  sandboxes: [1, 10, 100],
  busySandboxes: 8,
  growthSamples: 5,
  neighbourSamples: 5,
};

/** For the tests: every step of every row, once. */
export const smallScale: Scale = {
  // No figure of it is looked at closely.
  warmUp: { execs: 3, cells: 3, files: 2, largeFiles: 1, creates: 1 },
  stateMiB: [4, 8],
  forkCount: 2,
  fileMiB: 4,
  clients: 4,
  clientSandboxes: 2,
  clientsMs: 250,
  idleChildren: 2,
  idleMs: 500,
  waiting: 3,
  sandboxes: [1, 2],
  busySandboxes: 2,
  growthSamples: 1,
  neighbourSamples: 1,
};

/** What a child is expected to need at most, its share of a fork's snapshot included. */
const childBytes = 64 * 2 ** 20;
/** The rest is for everybody else on this host. */
const memoryShare = 0.6;

/** The same with as many sandboxes as this host has memory for, and a word about each count that is smaller for it. */
export function fitScale(scale: Scale, availableBytes: number): { scale: Scale; notes: readonly string[] } {
  const room = Math.max(2, Math.floor((availableBytes * memoryShare) / childBytes));
  const notes: string[] = [];
  const fitting = (count: number, what: string) => {
    if (count <= room) return count;
    notes.push(`${what}: ${room} instead of ${count}, since ${Math.round(availableBytes / 2 ** 20)} MiB of memory are available`);
    return room;
  };
  const idleChildren = fitting(scale.idleChildren, "idle children");
  const [first, ...more] = scale.sandboxes;
  const sandboxes = [first, ...more.map((count) => fitting(count, "sandboxes"))] as const;
  return { scale: { ...scale, idleChildren, sandboxes }, notes };
}
