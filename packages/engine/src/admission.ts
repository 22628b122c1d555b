import { readFileSync } from "node:fs";
import { MitosError } from "@mitos/protocol";
import { cgroupRoom } from "./cgroup-room.ts";
import type { Driver, Isolation } from "./driver.ts";
import { tracedSync } from "./tracing.ts";

/** The share of the memory that is available now which new machines may take; the rest is for growth and for the host. */
const budgetShare = 0.85;
const mib = 1024 * 1024;
/**
 * What a machine costs on the host beside its state: sentry, gofer and shim; or QEMU (or Firecracker) and shim, and under emulation the code that QEMU
 * has translated, which has a limit of 32 MiB.
 */
const overheadBytes = {
  gvisor: 40 * mib,
  "microvm-kvm": 24 * mib,
  "microvm-tcg": 56 * mib,
  "microvm-firecracker": 24 * mib,
  mock: 0,
} as const satisfies Record<Isolation, number>;

export function machineOverheadBytes({ isolation }: Pick<Driver, "isolation">): number {
  return overheadBytes[isolation];
}

const retryAfterMs = 2000;

/** Memory that is promised to machines which are being started. Given back once they are up and show in the host's own figure. */
export interface Reservation extends Disposable {
  readonly bytes: number;
}

/**
 * Decides whether the host has room for more machines, before any work is done for them.
 *
 * The budget is a share of what is available at that moment, so it follows what living sandboxes really use. A sandbox's own limit is
 * not reserved: most of it is never touched, and its driver ends a machine that goes over it.
 */
export class Admission {
  /** Gives up machines that only wait. @returns how much of so many bytes becomes free by that */
  reclaim: (bytes: number) => number = () => 0;
  readonly #availableBytes: () => number;
  #reservedBytes = 0;

  constructor(availableBytes: () => number = hostAvailableBytes) {
    this.#availableBytes = availableBytes;
  }

  get reservedBytes(): number {
    return this.#reservedBytes;
  }

  /** What could be promised now. */
  get roomBytes(): number {
    return Math.max(0, Math.floor(this.#availableBytes() * budgetShare) - this.#reservedBytes);
  }

  /** @throws quota_exceeded with `retryAfterMs` */
  reserve(operation: string, bytes: number): Reservation {
    return tracedSync("engine.admission", { "mitos.memory.bytes": bytes }, () => this.#reserve(operation, bytes));
  }

  #reserve(operation: string, bytes: number): Reservation {
    const { roomBytes } = this;
    const missing = bytes - roomBytes;
    if (missing > 0 && this.reclaim(missing) < missing) {
      throw new MitosError("quota_exceeded", {
        cause: `${operation} needs ${toMiB(bytes)} MiB of memory and this machine has ${toMiB(roomBytes)} MiB to give`,
        context: { op: operation, dimension: "memory_mib", limit: toMiB(roomBytes) },
        retryAfterMs,
      });
    }
    this.#reservedBytes += bytes;
    let held = true;
    return {
      bytes,
      [Symbol.dispose]: () => {
        if (held) this.#reservedBytes -= bytes;
        held = false;
      },
    };
  }
}

function toMiB(bytes: number): number {
  return Math.ceil(bytes / mib);
}

/** What this process and its machines may still use: of the host, and of the cgroup that they are in, whichever is less. */
export function hostAvailableBytes(): number {
  return Math.min(meminfoAvailableBytes(readFileSync("/proc/meminfo", "utf8")), cgroupAvailableBytes());
}

export function meminfoAvailableBytes(meminfo: string): number {
  const kib = /^MemAvailable:\s+(\d+) kB$/m.exec(meminfo)?.[1];
  if (kib === undefined) throw new Error("/proc/meminfo has no MemAvailable");
  return Number(kib) * 1024;
}

/** Infinity without a limit. */
function cgroupAvailableBytes(): number {
  return cgroupRoom(2, "/sys/fs/cgroup") ?? cgroupRoom(1, "/sys/fs/cgroup/memory") ?? Infinity;
}
