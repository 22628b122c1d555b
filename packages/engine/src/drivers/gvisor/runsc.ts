import type { Runsc } from "./find.ts";

/** Every write lands in the machine's own memory, so a snapshot holds the files too and the host's stay untouched. */
const inMemory = "--overlay2=all:memory";

/** Argument lists for runsc. They are run by a machine's shim, and without root in its user namespace. */
export interface RunscCommands {
  /** @param scratchDir - where what the machine writes lies in a file; undefined = in its memory */
  create(bundle: string, pidFile: string, containerId: string, scratchDir: string | undefined): string[];
  start(containerId: string): string[];
  checkpoint(image: string, containerId: string): string[];
  restore(bundle: string, pidFile: string, image: string, containerId: string): string[];
  remove(containerId: string): string[];
}

export function runscCommands(runsc: Runsc, root: string, { cgroups }: { cgroups: boolean }): RunscCommands {
  const base = [
    runsc.path,
    ...runsc.ownFlags,
    `--root=${root}`,
    // Loopback only: what leaves a machine leaves through its link.
    "--network=none",
    "--platform=systrap",
    "--host-uds=none",
    "--host-fifo=none",
    "--cpu-num-from-quota",
    ...(cgroups ? [] : ["--ignore-cgroups"]),
  ];
  return {
    create: (bundle, pidFile, id, scratchDir) => [
      ...base,
      scratchDir === undefined ? inMemory : `--overlay2=root:dir=${scratchDir}`,
      "create",
      `--bundle=${bundle}`,
      `--pid-file=${pidFile}`,
      id,
    ],
    start: (id) => [...base, "start", id],
    // Always left running: the machine is ended by us, after the snapshot has been committed.
    checkpoint: (image, id) => [
      ...base,
      inMemory,
      "checkpoint",
      `--image-path=${image}`,
      "--compression=none",
      "--exclude-committed-zero-pages",
      "--leave-running",
      id,
    ],
    restore: (bundle, pidFile, image, id) => [
      ...base,
      inMemory,
      "restore",
      "--detach",
      `--bundle=${bundle}`,
      `--pid-file=${pidFile}`,
      `--image-path=${image}`,
      id,
    ],
    remove: (id) => [...base, "delete", "--force", id],
  };
}
