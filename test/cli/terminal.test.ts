import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import type { Readable, Writable } from "node:stream";
import { stripVTControlCharacters } from "node:util";
import type { Sandbox } from "@mitos/sdk";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { bin } from "../../packages/cli/src/testing.ts";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";
import { until } from "../support/until.ts";

// What a person at a terminal sees, through a real one.
const fixture = path.resolve(import.meta.dirname, "../fixtures/on-terminal.py");
const dir = mkdtempSync(path.join(os.tmpdir(), "mitos-terminal-"));
let server: LiveServer;
let sandbox: Sandbox;

beforeAll(async () => {
  server = await startLiveServer();
  sandbox = await server.create();
});
afterAll(async () => {
  await server.close();
  rmSync(dir, { recursive: true });
});

/** What has been shown, without colours and carriage returns: our terminal's own come on top of those of the sandbox's. */
function lines(shown: string): string {
  return stripVTControlCharacters(shown).replaceAll("\r", "");
}

/** The command on a terminal of 24 lines and 80 columns. */
class Terminal implements AsyncDisposable {
  readonly #process: ChildProcess;
  readonly #ended: Promise<unknown>;
  #shown = "";
  #report = "";

  constructor(args: readonly string[], env: Record<string, string> = {}) {
    this.#process = spawn("python3", [fixture, "24", "80", process.execPath, bin, ...args], {
      env: { PATH: process.env.PATH, HOME: dir, TERM: "xterm-256color", MITOS_BASE_URL: server.url, ...env },
      stdio: ["pipe", "pipe", "pipe", "pipe"],
    });
    this.#process.stdout!.on("data", (data) => (this.#shown += data));
    this.#process.stderr!.on("data", (data) => (this.#report += data));
    this.#ended = once(this.#process, "close");
  }

  /** All so far, as it came. */
  get raw(): string {
    return this.#shown;
  }

  type(keys: string): void {
    this.#process.stdin!.write(keys);
  }

  /** Waits until it has been shown once more than it was. */
  async shows(text: string | RegExp, since = 0): Promise<void> {
    const seen = () => lines(this.#shown.slice(since));
    await until(`the terminal shows ${text}`, () => (typeof text === "string" ? seen().includes(text) : text.test(seen())), 60_000).catch(
      (error: Error) => {
        throw new Error(`${error.message}; it shows: ${JSON.stringify(seen())}`);
      },
    );
  }

  resize(rows: number, cols: number): void {
    (this.#process.stdio[3] as Writable).write(`${rows} ${cols}\n`);
  }

  /** @returns its exit code, and whether the terminal was put back */
  async end(): Promise<{ code: number; restored: boolean }> {
    await this.#ended;
    return JSON.parse(this.#report) as { code: number; restored: boolean };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#process.kill();
    (this.#process.stdout as Readable).resume();
    await this.#ended;
  }
}

/** Tells the size of its terminal whenever it is told that it has changed, until Ctrl-C. */
const listener = `
import os, signal
signal.signal(signal.SIGWINCH, lambda *_: print("size", *os.get_terminal_size(), flush=True))
print("listening", flush=True)
while True: signal.pause()
`;

describe("mitos shell", () => {
  it("is a terminal in the sandbox: prompt, keys, size and resizing, Ctrl-C, Ctrl-D with the exit code", async () => {
    await using terminal = new Terminal(["shell", sandbox.id]);
    await terminal.shows(/[#$] $/);
    terminal.type("stty size; echo $TERM; tty\r");
    await terminal.shows(/\n24 80\nxterm-256color\n\/dev\/pts\/\d+/);
    terminal.type("\x01\x0bprintf '%s\\n' first''-word\r"); // Ctrl-A and Ctrl-K reach the line editor
    await terminal.shows("\nfirst-word");

    await sandbox.files.write("listen.py", listener);
    const before = terminal.raw.length;
    terminal.type("python3 listen.py\r");
    await terminal.shows("listening", before);
    terminal.resize(41, 133);
    await terminal.shows("\nsize 133 41\n", before);
    terminal.type("\x03");
    await terminal.shows("KeyboardInterrupt", before);
    terminal.type("\rstty size\r");
    await terminal.shows("\n41 133\n", before);

    terminal.type("(exit 42)\r");
    terminal.type("\x04");
    expect(await terminal.end()).toEqual({ code: 42, restored: true });
  });

  it("makes a sandbox for the terminal alone, and puts the terminal back when it is told to end", async () => {
    await using terminal = new Terminal(["shell", "new"]);
    await terminal.shows(/[#$] $/);
    const [made] = server.engine.list().filter(({ id }) => id !== sandbox.id);
    // Only in its own sandbox: by its name.
    terminal.type("hostname\r");
    await terminal.shows(`\n${made!.id}\n`);
    terminal.type("kill -9 $$\r");
    const { code, restored } = await terminal.end();
    expect({ code, restored }).toEqual({ code: 255, restored: true });
    expect(server.engine.list()).toHaveLength(1);
  });

  it("says what is wrong, and leaves the terminal alone, for a sandbox that does not exist", async () => {
    await using terminal = new Terminal(["shell", "nope"]);
    expect(await terminal.end()).toEqual({ code: 3, restored: true });
    expect(lines(terminal.raw)).toMatch(/^error: .*\ncause: .*nope.*\nnext step: /);
  });
});

describe("on a terminal", () => {
  async function shown(args: readonly string[], env: Record<string, string> = {}): Promise<string> {
    await using terminal = new Terminal(args, env);
    await terminal.end();
    return terminal.raw;
  }

  it("failures and tables are coloured, unless NO_COLOR or TERM=dumb says no", async () => {
    const code = "\x1b[";
    expect((await shown(["sandbox", "info", "nope"])).startsWith(`${code}31merror:${code}0m `)).toBe(true);
    expect((await shown(["sandbox", "ls"])).startsWith(`${code}1mNAME `)).toBe(true);
    for (const [name, value] of [
      ["NO_COLOR", "1"],
      ["TERM", "dumb"],
    ] as const) {
      const plain = await shown(["sandbox", "info", "nope"], { [name]: value });
      expect(plain.startsWith("error: ")).toBe(true);
      expect(plain).not.toContain(code);
    }
  });

  it("tables are cut to its width", async () => {
    const { stdout } = await sandbox.exec(["echo", "a".repeat(200)]);
    expect(stdout).toHaveLength(201);
    const listed = lines(await shown(["logs", sandbox.id, "-o", "table"])).split("\n");
    expect(Math.max(...listed.map((line) => line.length))).toBe(80);
    expect(listed.some((line) => line.endsWith("aaa…"))).toBe(true);
  });
});
