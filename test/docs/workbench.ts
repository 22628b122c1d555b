import { type ChildProcess, spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import path from "node:path";
import { create } from "@mitos/sdk";
import { expect } from "vitest";
import { engineEnvironment } from "../support/engine-under-test.ts";
import { type HostSet, hostPackages, sandboxPython } from "../support/python-packages.ts";
import { noTraces, Tracker } from "../support/traces.ts";
import { root } from "./markdown.ts";
import type { Program } from "./programs.ts";

const programMs = 110_000;
const bin = path.join(root, "node_modules/.bin");
const endings = { ts: "ts", python: "py", sh: "sh" } as const;

/**
 * Where the programs of one page run, one after the other: a folder that looks like a checkout, a home of its own without keys, and the
 * live server, until the page starts one itself.
 *
 * It lies inside the checkout, so that imports are found as everywhere in it.
 */
export class Workbench {
  readonly #folder: string;
  readonly #home: string;
  /** Of servers that the page has started. */
  readonly #dataDirs = new Set<string>();
  #serverUrl: string;
  #server: RunningServer | undefined;
  #count = 0;

  constructor(serverUrl: string) {
    this.#serverUrl = serverUrl;
    const parent = path.join(root, ".cache/docs");
    mkdirSync(parent, { recursive: true });
    this.#folder = mkdtempSync(path.join(parent, "page-"));
    this.#home = path.join(this.#folder, "home");
    mkdirSync(this.#home);
    for (const name of ["examples", "packages", "docs", "package.json", "README.md"]) {
      symlinkSync(path.join(root, name), path.join(this.#folder, name));
    }
    this.#makeBin();
  }

  /** @returns what it printed on standard output */
  async run(program: Program): Promise<string> {
    if (program.isServer) return this.#serve(program);
    if (program.language === "python" && !usesClient(program.code)) return this.#runInSandbox(program);
    const [command, ...args] = this.#commandOf(program);
    const child = this.#start(command!, args, await variablesOf(program));
    const timer = setTimeout(() => signalGroup(child, "SIGKILL"), programMs);
    const { code, out, err } = await end(child).finally(() => clearTimeout(timer));
    if (code !== 0) throw new Error(`it ended with ${code ?? `a signal; it has ${programMs} ms`}\n${err}${out}`);
    return out;
  }

  /** Ends the page's own server, and fails when that leaves anything on the host. */
  async close(): Promise<void> {
    try {
      await this.#stopServer();
      const trackers = [...this.#dataDirs].map((dir) => new Tracker(dir));
      for (const dir of this.#dataDirs) rmSync(dir, { recursive: true });
      for (const tracker of trackers) expect(tracker.find()).toEqual(noTraces);
    } finally {
      rmSync(this.#folder, { recursive: true, force: true });
    }
  }

  /**
   * The checkout's programs, but for `mitos serve`, which takes a free port and leaves nothing behind. No page gets at a data directory of
   * this machine.
   */
  #makeBin(): void {
    const own = path.join(this.#folder, "node_modules/.bin");
    mkdirSync(own, { recursive: true });
    for (const name of readdirSync(bin)) if (name !== "mitos") symlinkSync(path.join(bin, name), path.join(own, name));
    const script = `#!/bin/sh
before=
for word; do
  case "$before $word" in
    "--data-dir ${this.#folder}/"* | "--data-dir "[!/]*) ;;
    "--data-dir "* | *" --data-dir="*) echo "error: in a page, write --data-dir and a folder below ~" >&2; exit 2 ;;
  esac
  before=$word
done
if [ "$1" = serve ]; then set -- "$@" --addr 127.0.0.1:0 --ephemeral; fi
exec ${path.join(bin, "mitos")} "$@"
`;
    writeFileSync(path.join(own, "mitos"), script, { mode: 0o755 });
  }

  #commandOf({ language, code }: Program): string[] {
    const file = this.#write(`program-${++this.#count}.${endings[language]}`, code);
    if (language === "ts") return [process.execPath, file];
    return language === "python" ? [sandboxPython, file] : ["bash", "-euo", "pipefail", file];
  }

  async #runInSandbox({ code }: Program): Promise<string> {
    await using sandbox = await create({ baseUrl: this.#serverUrl });
    await sandbox.files.write("/workspace/program.py", code);
    const { exitCode, stdout, stderr } = await sandbox.exec("python3 program.py", { timeoutSeconds: programMs / 1000 });
    if (exitCode !== 0) throw new Error(`it ended with ${exitCode}\n${stderr}${stdout}`);
    return stdout;
  }

  async #serve({ code }: Program): Promise<string> {
    await this.#stopServer();
    const file = this.#write(`program-${++this.#count}.sh`, code);
    // The trap keeps bash until the server has ended in its own way.
    const child = this.#start("bash", ["-c", `trap : TERM; . "$0"`, file], {});
    this.#server = { child, ended: end(child) };
    const { url, dataDir, printed } = await listening(this.#server).catch((error: unknown) => {
      this.#server = undefined;
      throw error;
    });
    this.#serverUrl = url;
    this.#dataDirs.add(dataDir);
    return printed;
  }

  async #stopServer(): Promise<void> {
    const server = this.#server;
    this.#server = undefined;
    if (!server) return;
    signalGroup(server.child, "SIGTERM");
    const { code, err } = await server.ended;
    expect(code, err).toBe(0);
  }

  #write(name: string, content: string): string {
    const file = path.join(this.#folder, name);
    writeFileSync(file, content);
    return file;
  }

  #start(command: string, args: readonly string[], variables: Record<string, string>): ChildProcess {
    return spawn(command, args, {
      cwd: this.#folder,
      stdio: ["ignore", "pipe", "pipe"],
      detached: true,
      env: {
        PATH: `${path.join(this.#folder, "node_modules/.bin")}:${process.env.PATH}`,
        HOME: this.#home,
        LANG: "C.UTF-8",
        MITOS_CONFIG_DIR: path.join(this.#home, ".config/mitos"),
        MITOS_BASE_URL: this.#serverUrl,
        ...engineEnvironment,
        ...(process.env.MITOS_RUNSC ? { MITOS_RUNSC: process.env.MITOS_RUNSC } : {}),
        ...variables,
      },
    });
  }
}

interface Ended {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
}

interface RunningServer {
  readonly child: ChildProcess;
  readonly ended: Promise<Ended>;
}

/** Resolves when a server has said where it listens; rejects when it ends before. */
function listening({ child, ended }: RunningServer): Promise<{ url: string; dataDir: string; printed: string }> {
  return new Promise((resolve, reject) => {
    let printed = "";
    child.stdout!.on("data", (text) => {
      printed += text;
      const [, url, dataDir] = /listens on (http:\S+)[\s\S]* {2}data +(.*)\n/.exec(printed) ?? [];
      if (url && dataDir) resolve({ url, dataDir, printed });
    });
    ended.then(({ code, out, err }) => reject(new Error(`the server ended with ${code}\n${err}${out}`)), reject);
  });
}

function end(child: ChildProcess): Promise<Ended> {
  const seen = { out: "", err: "" };
  child.stdout!.setEncoding("utf8").on("data", (text) => (seen.out += text));
  child.stderr!.setEncoding("utf8").on("data", (text) => (seen.err += text));
  return new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code) => resolve({ code, ...seen }));
  });
}

function signalGroup(child: ChildProcess, signal: NodeJS.Signals): void {
  try {
    process.kill(-child.pid!, signal);
  } catch {
    // It has ended meanwhile.
  }
}

const imports = (code: string, modules: string) => new RegExp(`^\\s*(?:import|from) (?:${modules})\\b`, "m").test(code);

/** The published client, and what is built on it; all other Python belongs into a sandbox. */
function usesClient(code: string): boolean {
  return imports(code, "mitos");
}

async function variablesOf({ language, code }: Program): Promise<Record<string, string>> {
  if (language === "ts") return {};
  const sets: HostSet[] = ["mitos-run-0.1.1"];
  if (imports(code, "agents|claude_agent_sdk|deepagents|langchain\\w*")) sets.push("frameworks");
  if (imports(code, "zenml")) sets.push("zenml");
  // A shell block may start a Python program as well.
  return { PYTHONPATH: (await Promise.all(sets.map(hostPackages))).join(path.delimiter) };
}
