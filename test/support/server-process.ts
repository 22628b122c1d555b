import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import path from "node:path";
import { SandboxServer } from "@mitos/sdk";
import { engineEnvironment } from "./engine-under-test.ts";

const bin = path.resolve(import.meta.dirname, "../../packages/cli/bin/mitos.js");

export interface Ended {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly out: string;
  readonly err: string;
}

export interface StartOptions {
  readonly args?: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  /** A command that becomes the server by exec, such as `unshare --mount sh -c '…; exec "$@"' sh`. */
  readonly through?: readonly string[];
}

/** `mitos serve` as a user starts it: a process of its own, to be killed and started again. */
export class ServerProcess {
  readonly child: ChildProcess;
  readonly ended: Promise<Ended>;
  readonly seen = { out: "", err: "" };

  private constructor(child: ChildProcess) {
    this.child = child;
    child.stdout?.on("data", (data) => {
      this.seen.out += data;
    });
    child.stderr?.on("data", (data) => {
      this.seen.err += data;
    });
    this.ended = once(child, "close").then(([code, signal]) => ({ code, signal, ...this.seen }) as Ended);
  }

  /** Resolves at once; the server may still be starting, or about to refuse. */
  static spawn(dataDir: string, { args = [], env = {}, through = [] }: StartOptions = {}): ServerProcess {
    const serve = ["serve", "--addr", "127.0.0.1:0", "--data-dir", dataDir, ...args];
    const [command, ...rest] = [...through, process.execPath, bin, ...serve];
    return new ServerProcess(
      spawn(command!, rest, { env: { ...process.env, ...engineEnvironment, ...env }, stdio: ["ignore", "pipe", "pipe"] }),
    );
  }

  /** How a server ends that is not to come up. @throws when it does */
  static async refused(dataDir: string, options: StartOptions = {}): Promise<Ended> {
    const server = ServerProcess.spawn(dataDir, options);
    const came = await Promise.race([server.ended, server.#announced().then(() => "up" as const)]);
    if (came !== "up") return came;
    await server.kill();
    throw new Error("the server has started");
  }

  /** Resolves when the server listens. */
  static async start(dataDir: string, options: StartOptions = {}): Promise<ServerProcess> {
    const server = ServerProcess.spawn(dataDir, options);
    await server.listening();
    return server;
  }

  /** @throws with what it said when it ends instead */
  async listening(): Promise<void> {
    const first = await Promise.race([this.ended, this.#announced()]);
    if (first) throw new Error(`the server did not start: ${first.code ?? first.signal} ${first.out}${first.err}`);
  }

  get url(): string {
    const url = /Mitos listens on (http:\S+)/.exec(this.seen.out)?.[1];
    if (!url) throw new Error(`the server does not listen: ${this.seen.err}`);
    return url;
  }

  get api(): SandboxServer {
    return new SandboxServer(this.url);
  }

  /** SIGKILL, as from an impatient administrator or the kernel. */
  async kill(): Promise<void> {
    this.child.kill("SIGKILL");
    await this.ended;
  }

  /** SIGTERM, and what came of it. */
  stop(signal: NodeJS.Signals = "SIGTERM"): Promise<Ended> {
    this.child.kill(signal);
    return this.ended;
  }

  /** Never resolves when the server ends instead. */
  #announced(): Promise<undefined> {
    return new Promise((resolve) => {
      const look = () => {
        if (this.seen.out.includes("\n  data ")) resolve(undefined);
      };
      this.child.stdout?.on("data", look);
      look();
    });
  }
}
