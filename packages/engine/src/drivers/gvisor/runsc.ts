import type { Runsc } from "./find.ts";

/** Argument lists for runsc. They are run by a machine's shim, and without root in its user namespace. */
export interface RunscCommands {
  create(bundle: string, pidFile: string, containerId: string): string[];
  start(containerId: string): string[];
  checkpoint(image: string, containerId: string): string[];
  restore(bundle: string, pidFile: string, image: string, containerId: string): string[];
  remove(containerId: string): string[];
}

export function runscCommands(runsc: Runsc, root: string, { cgroups }: { cgroups: boolean }): RunscCommands {
  const base = [
    runsc.path,
    `--root=${root}`,
    // Loopback only: what leaves a machine leaves through its link.
    "--network=none",
    // Every write lands in the machine's own memory, so a snapshot holds the files too and the host's stay untouched.
    "--overlay2=all:memory",
    "--platform=systrap",
    "--host-uds=none",
    "--host-fifo=none",
    "--cpu-num-from-quota",
    ...(cgroups ? [] : ["--ignore-cgroups"]),
  ];
  return {
    create: (bundle, pidFile, id) => [...base, "create", `--bundle=${bundle}`, `--pid-file=${pidFile}`, id],
    start: (id) => [...base, "start", id],
    // Always left running: the machine is ended by us, after the snapshot has been committed.
    checkpoint: (image, id) => [
      ...base,
      "checkpoint",
      `--image-path=${image}`,
      "--compression=none",
      "--exclude-committed-zero-pages",
      "--leave-running",
      id,
    ],
    restore: (bundle, pidFile, image, id) => [
      ...base,
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
