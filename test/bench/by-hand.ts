import { type ChildProcess, type StdioOptions, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, open, readFile, rm, writeFile } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { resourceDefaults } from "@mitos/protocol";
import { findNodeForMachines, type Runsc } from "../../packages/engine/src/drivers/gvisor/find.ts";
import { type MachineRoot, openHostRoot } from "../../packages/engine/src/drivers/gvisor/root.ts";
import { ociSpec } from "../../packages/engine/src/drivers/gvisor/spec.ts";
import { newKeeperId } from "../../packages/engine/src/drivers/host/layout.ts";
import { findGuest } from "../../packages/engine/src/drivers/host/parts.ts";
import { until } from "../support/until.ts";

const errorBytesMax = 4096;

/** What a command reads, and where what it prints goes: piece by piece, and by itself nowhere. */
export interface Streams {
  readonly input?: Uint8Array;
  readonly onOutput?: (piece: Buffer) => void;
}

/**
 * What somebody does with one build of runsc alone: the same root file system, mounts and capabilities as a sandbox has, no network, and otherwise
 * the flags that runsc takes by itself. Without root its commands run in a user namespace of their own, as those of the engine do.
 */
export class ByHand implements AsyncDisposable {
  readonly build: string;
  readonly #dir: string;
  readonly #command: readonly string[];
  readonly #root: MachineRoot;
  readonly #namespace: ChildProcess | undefined;
  /** What each container was started with, by its id. */
  readonly #containers = new Map<string, readonly string[]>();

  private constructor(dir: string, { path: runsc, build, ownFlags }: Runsc, root: MachineRoot, namespace?: ChildProcess) {
    this.#dir = dir;
    this.build = build;
    this.#root = root;
    this.#namespace = namespace;
    this.#command = [
      ...(namespace ? ["nsenter", `--user=/proc/${namespace.pid}/ns/user`, "--preserve-credentials"] : []),
      runsc,
      ...ownFlags,
      `--root=${path.join(dir, "state")}`,
      "--network=none",
      // Neither does the engine write to the host's files.
      "--overlay2=all:memory",
      "--ignore-cgroups",
    ];
  }

  /** @param dataDir - whose root is used: of an engine that is open */
  static async open(dataDir: string, runsc: Runsc): Promise<ByHand> {
    const [guest, node] = await Promise.all([findGuest(undefined), findNodeForMachines()]);
    const root = await openHostRoot(path.join(dataDir, "gvisor"), guest, node);
    const dir = await mkdtemp(path.join(os.tmpdir(), "mitos-bench-hand-"));
    await mkdir(path.join(dir, "state"));
    return new ByHand(dir, runsc, root, process.getuid?.() === 0 ? undefined : await holdUserNamespace());
  }

  /** `runsc run`: a container for one program. @returns what it printed, when it and its container have ended */
  async run(args: readonly string[]): Promise<string> {
    const { id, bundle } = await this.#bundle(args);
    try {
      const printed: Buffer[] = [];
      await this.#runsc(["run", `--bundle=${bundle}`, id], { onOutput: (piece) => printed.push(piece) });
      return Buffer.concat(printed).toString();
    } finally {
      await this.remove(id);
    }
  }

  /** `runsc run --detach`: a container whose first program is this one. @returns its id, when the program has been started */
  async start(args: readonly string[]): Promise<string> {
    const { id, bundle } = await this.#bundle(args);
    await this.#detached(["run", "--detach", `--bundle=${bundle}`, id], bundle);
    return id;
  }

  /** `runsc exec`. Resolves when the program has ended and all that it printed has come. */
  exec(id: string, args: readonly string[], streams: Streams = {}): Promise<void> {
    return this.#runsc(["exec", id, ...args], streams);
  }

  /** `runsc checkpoint` of a container that runs on, and `runsc restore` of what it saved. @returns the copy's id */
  async fork(id: string): Promise<string> {
    // Newer builds restore only what they would start themselves.
    const { id: copy, bundle } = await this.#bundle(this.#containers.get(id) ?? []);
    const image = path.join(bundle, "image");
    await this.#runsc(["checkpoint", "--leave-running", `--image-path=${image}`, id]);
    await this.#detached(["restore", "--detach", `--bundle=${bundle}`, `--image-path=${image}`, copy], bundle);
    return copy;
  }

  /** Ends a container and removes what is left of it. */
  async remove(id: string): Promise<void> {
    await this.#runsc(["delete", "--force", id]);
    await rm(this.#bundleOf(id), { recursive: true, force: true });
    this.#containers.delete(id);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const id of this.#containers.keys()) await this.remove(id);
    this.#namespace?.kill("SIGKILL");
    await rm(this.#dir, { recursive: true, force: true });
  }

  async #bundle(args: readonly string[]): Promise<{ id: string; bundle: string }> {
    const id = newKeeperId(); // of one length: runsc accepts unique prefixes
    const bundle = this.#bundleOf(id);
    const { process: agent, ...spec } = ociSpec(id, { root: this.#root, resources: resourceDefaults }, undefined) as { process: object };
    await mkdir(path.join(bundle, "image"), { recursive: true });
    await writeFile(path.join(bundle, "config.json"), JSON.stringify({ ...spec, process: { ...agent, args } }));
    this.#containers.set(id, args);
    return { id, bundle };
  }

  #bundleOf(id: string): string {
    return path.join(this.#dir, id);
  }

  /** What it says goes into a file: the container that it leaves keeps its output, so that a pipe would not end. */
  async #detached(args: readonly string[], bundle: string): Promise<void> {
    const file = path.join(bundle, "output");
    await using output = await open(file, "w");
    const child = this.#spawn(args, ["ignore", output.fd, output.fd]);
    const [code, signal] = (await once(child, "exit")) as [number | null, string | null];
    if (code !== 0) throw failed(args, code ?? signal, await readFile(file, "utf8"));
  }

  /** @throws with what it said when it fails */
  async #runsc(args: readonly string[], { input, onOutput }: Streams = {}): Promise<void> {
    const child = this.#spawn(args, [input ? "pipe" : "ignore", "pipe", "pipe"]);
    let errors = "";
    child.stdout?.on("data", (piece: Buffer) => onOutput?.(piece));
    child.stderr?.on("data", (chunk: Buffer) => {
      errors = (errors + chunk.toString()).slice(-errorBytesMax);
    });
    child.stdin?.on("error", () => undefined); // what it does not read, it says by its exit code
    child.stdin?.end(input);
    const [code, signal] = (await once(child, "close")) as [number | null, string | null];
    if (code !== 0) throw failed(args, code ?? signal, errors);
  }

  #spawn(args: readonly string[], stdio: StdioOptions): ChildProcess {
    const [command, ...rest] = [...this.#command, ...args] as [string, ...string[]];
    // In a group of its own: Ctrl-C is this program's to answer, by removing its containers.
    return spawn(command, rest, { stdio, detached: true });
  }
}

function failed(args: readonly string[], end: number | string | null, said: string): Error {
  return new Error(`runsc ${args.join(" ")} ended with ${end}: ${said.slice(-errorBytesMax).trim()}`);
}

/** A process in a user namespace in which this user is root; others enter it. */
async function holdUserNamespace(): Promise<ChildProcess> {
  const child = spawn("unshare", ["--user", "--map-root-user", "sleep", "infinity"], { stdio: "ignore", detached: true });
  const failed = once(child, "close").then(([code]) => {
    throw new Error(`unshare --user ended with ${code}: user namespaces are not allowed here`);
  });
  failed.catch(() => undefined); // when it is killed at the end
  const entered = until("a user namespace", async () => (await readFile(`/proc/${child.pid}/comm`, "utf8").catch(() => "")) === "sleep\n");
  await Promise.race([entered, failed]);
  return child;
}
