import os from "node:os";

/** What absolute figures depend on. */
export interface HostDescription {
  readonly cpu: string;
  readonly cores: number;
  readonly memoryMiB: number;
  readonly kernel: string;
  /** The mean number of busy processes in the minute before. */
  readonly load: number;
}

export function describeHost(): HostDescription {
  return {
    cpu: os.cpus()[0]?.model.trim() ?? "unknown processor",
    cores: os.availableParallelism(),
    memoryMiB: Math.round(os.totalmem() / 2 ** 20),
    kernel: os.release(),
    load: os.loadavg()[0] ?? 0,
  };
}

export function hostLine({ cpu, cores, memoryMiB, kernel, load }: HostDescription): string {
  return `${cpu}, ${cores} cores, ${(memoryMiB / 1024).toFixed(0)} GiB, Linux ${kernel}, load ${load.toFixed(1)} at the start`;
}
