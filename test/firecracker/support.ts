import { chmod, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { createConnection } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import type { Driver, Machine, MachineSpec } from "../../packages/engine/src/driver.ts";
import { openFirecrackerDriver } from "../../packages/engine/src/drivers/firecracker/index.ts";
import { findGuest } from "../../packages/engine/src/drivers/host/parts.ts";
import { quiet } from "../support/live-server.ts";

const fakes = path.join(import.meta.dirname, "fake");

/** One answered call, as the stand-in noted it. */
export interface NotedCall {
  readonly id: string;
  readonly method: string;
  readonly path: string;
  readonly body: Readonly<Record<string, unknown>>;
  readonly status: number;
  readonly fault?: string;
}

/** A data directory, the stand-ins for Firecracker and its jailer, and the files that a machine is made of. */
export class Bench implements AsyncDisposable {
  readonly dir: string;
  readonly firecracker: string;
  readonly jailer: string;
  readonly removals: ReadonlySet<string>[] = [];
  #drivers: Driver[] = [];

  private constructor(dir: string) {
    this.dir = dir;
    this.firecracker = path.join(dir, "bin", "firecracker");
    this.jailer = path.join(dir, "bin", "jailer");
  }

  static async open(): Promise<Bench> {
    const bench = new Bench(await mkdtemp(path.join(tmpdir(), "mitos-fc-")));
    await mkdir(path.join(bench.dir, "bin"));
    await writeProgram(bench.firecracker, "firecracker.ts", { FAKE_CALLS: bench.file("calls") });
    await writeProgram(bench.jailer, "jailer.ts", {});
    const disk = Buffer.alloc(1024 * 1024);
    disk.write("empty");
    for (const [name, content] of [
      ["vmlinux", "kernel"],
      ["initramfs", "modules"],
      ["key-a", "root"],
      ["disk", disk],
    ] as const) {
      await writeFile(bench.file(name), content, { mode: 0o444 });
    }
    await writeFile(bench.file("calls"), "");
    return bench;
  }

  file(name: string): string {
    return path.join(this.dir, name);
  }

  /** @param jailed - with the jailer, which needs root */
  async driver({ jailed }: { jailed: boolean }): Promise<Driver> {
    const options = {
      dataDir: this.file("data"),
      runtimeDir: this.file("run"),
      log: quiet,
      firecracker: this.firecracker,
      jailer: jailed ? this.jailer : undefined,
    };
    await mkdir(options.dataDir, { recursive: true, mode: 0o700 });
    const driver = await openFirecrackerDriver(options, {
      guest: await findGuest(undefined),
      parts: {
        kernel: { path: this.file("vmlinux") },
        initramfs: { path: this.file("initramfs") },
        emptyDisk: { path: this.file("disk") },
      },
      images: {
        use: async () => ({ path: this.file("key-a"), key: "key-a", [Symbol.dispose]: () => {} }),
        pathOf: (key) => this.file(key),
        removeUnused: async (keep) => void this.removals.push(await keep()),
      },
    });
    this.#drivers.push(driver);
    return driver;
  }

  async calls(): Promise<NotedCall[]> {
    const text = await readFile(this.file("calls"), "utf8");
    return text
      .split("\n")
      .filter(Boolean)
      .map((line) => JSON.parse(line) as NotedCall);
  }

  /** What machines have on this host: folders, disks, jails. */
  async leftovers(): Promise<string[]> {
    const folders = ["run/m", "run/ids", "data/firecracker/disks", "data/firecracker/jails/firecracker"];
    return (await Promise.all(folders.map((name) => readdir(this.file(name)).catch(() => [])))).flat();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const driver of this.#drivers) {
      await driver.sweep(new Set());
      await driver.close();
    }
    await rm(this.dir, { recursive: true, force: true });
  }
}

/** Started without our environment, as a VMM is. */
async function writeProgram(file: string, fake: string, env: Readonly<Record<string, string>>): Promise<void> {
  const assignments = Object.entries(env).map(([name, value]) => `${name}='${value}'; export ${name}\n`);
  await writeFile(file, `#!/bin/sh\n${assignments.join("")}exec '${process.execPath}' '${path.join(fakes, fake)}' "$@"\n`);
  await chmod(file, 0o755);
}

export function specOf(machineId: string): MachineSpec {
  return { machineId, root: { kind: "host" }, resources: { vcpuCount: 2, memSizeMiB: 64, processesMax: 64 }, hostName: machineId };
}

/** Asks the stand-in's guest, over vsock as the link does: `memory`, `memory=VALUE`, `disk`, `disk=VALUE`. */
export async function ask(machine: Machine, line: string): Promise<string> {
  const { vmm } = machine as Machine & { vmm: { dir: string; place: { vsock: string } } };
  const socket = createConnection(path.join(vmm.dir, vmm.place.vsock));
  socket.setTimeout(10_000, () => socket.destroy(new Error("the guest does not answer")));
  socket.write("CONNECT 99\n");
  let text = "";
  try {
    for await (const chunk of socket) {
      text += String(chunk);
      const [greeting, answer, rest] = text.split("\n");
      if (rest !== undefined) return answer!;
      if (answer === "" && greeting?.startsWith("OK ")) socket.write(`${line}\n`);
    }
  } finally {
    socket.destroy();
  }
  throw new Error(`the guest hung up after ${JSON.stringify(text)}`);
}
