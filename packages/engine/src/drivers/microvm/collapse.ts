import path from "node:path";
import { nodeOf, nodePrefix, placeholderNode } from "./disk-steps.ts";
import type { Disk, Disks } from "./disks.ts";
import { execute, type VmmStep } from "./vmm-steps.ts";

/** Runs steps in a machine's VMM. @throws when one fails; those before it have had their effect */
export type RunSteps = (steps: readonly VmmStep[]) => Promise<readonly unknown[]>;

/** A machine has one disk, so there is one of these at most. */
const job = "collapse";
/** What it takes of the host's disk, so that a machine and its neighbours notice little of it. */
const bytesPerSecond = 64 * 2 ** 20;
/** Each round meets a job that has just begun to end by itself, or none. */
const roundsMax = 5;

interface Job {
  readonly id: string;
  readonly status: string;
  readonly "current-progress": number;
  readonly "total-progress": number;
}

interface BlockNode {
  readonly "node-name"?: string;
  readonly image?: { readonly "backing-filename"?: string };
}

/**
 * Begins to copy what lies between a machine's overlay and the empty disk into that overlay, in the background; the machine runs on, and nothing else
 * is written to. A machine with a collapse under way cannot be forked: `settleCollapse` comes first.
 */
export async function startCollapse(run: RunSteps, { path: file, chain }: Disk): Promise<void> {
  const empty = chain[0] as string;
  await run([
    execute("block-stream", {
      "job-id": job,
      device: nodeOf(file),
      "base-node": nodeOf(empty),
      // What is to stand in the overlay's header. QEMU would write the names that it knows, which are numbers of its own.
      "backing-file": path.basename(empty),
      speed: bytesPerSecond,
      "on-error": "report",
    }),
  ]);
}

/** How far it is, 0 to 1; undefined when there is none (any more). */
export async function collapseProgress(run: RunSteps): Promise<number | undefined> {
  const found = await findJob(run);
  return found && found["current-progress"] / Math.max(1, found["total-progress"]);
}

/** Somebody waits for it: no bound on what it takes of the host's disk any more. Harmless when it has just ended. */
export async function hurryCollapse(run: RunSteps): Promise<void> {
  try {
    await run([execute("block-job-set-speed", { device: job, speed: 0 })]);
  } catch (error) {
    if (await findJob(run)) throw error;
  }
}

/**
 * Ends a collapse: calls it off where it is under way (what it has copied does no harm), and where it has succeeded has the files between forgotten, by the disks and by the VMM. Harmless where there was none, so that it is also what a server does
 * with a machine that it finds.
 *
 * @param disk - as known so far
 * @param spare - path of an overlay that the machine has open ahead
 * @returns the disk as it is now
 */
export async function settleCollapse(run: RunSteps, disks: Disks, disk: Disk, spare?: string): Promise<Disk> {
  await callOffCollapse(run);
  // Not earlier: QEMU 10.0 dies when it is asked for its nodes while a stream that has ended is still listed.
  const nodes = ((await run([execute("query-named-block-nodes", { flat: true })])) as [readonly BlockNode[]])[0];
  const top = nodes.find((node) => node["node-name"] === nodeOf(disk.path));
  const empty = disk.chain[0] as string;
  const collapsed = top?.image?.["backing-filename"] === path.basename(empty);
  // First where it lasts: a server that dies between the two finds nodes that nobody needs, and removes them.
  const now = collapsed && disk.chain.length > 2 ? await disks.collapsed(disk.id) : disk;
  const needed = new Set([placeholderNode, ...[...now.chain, ...(spare ? [spare] : [])].map(nodeOf)]);
  const unneeded = nodes.map((node) => node["node-name"] ?? "").filter((name) => name.startsWith(nodePrefix) && !needed.has(name));
  // They are told newest first, and so each before the one that it stands on.
  if (unneeded.length > 0) await run(unneeded.map((name) => execute("blockdev-del", { "node-name": name })));
  return now;
}

/** What it has copied does no harm. Harmless where there is none. */
export async function callOffCollapse(run: RunSteps): Promise<void> {
  for (let round = 0; await findJob(run); round += 1) {
    const ended = { event: "JOB_STATUS_CHANGE", field: "status", values: ["null"], failures: [] };
    try {
      await run([execute("job-cancel", { id: job }), { await: ended }]);
    } catch (error) {
      // It may have ended by itself in between.
      if (round >= roundsMax) throw error;
    }
  }
}

async function findJob(run: RunSteps): Promise<Job | undefined> {
  const [jobs] = (await run([execute("query-jobs")])) as [readonly Job[]];
  return jobs.find(({ id }) => id === job);
}
