import { type ChildProcessWithoutNullStreams, spawn } from "node:child_process";
import { once } from "node:events";
import path from "node:path";
import { createInterface } from "node:readline";
import { StdioClientTransport } from "@modelcontextprotocol/client/stdio";
import { until } from "../../support/until.ts";

const root = path.resolve(import.meta.dirname, "../../..");
export const bin = path.join(root, "node_modules/.bin/mitos-mcp");

/** No key and no address but the given ones reach the program. */
function environment(extra: Record<string, string>): Record<string, string> {
  return { PATH: process.env.PATH ?? "", MITOS_CONFIG_DIR: "/nonexistent", ...extra };
}

/** For a client: it starts `mitos-mcp` and speaks with it. What the program says on standard error is collected. */
export function stdioTransport(
  args: readonly string[],
  env: Record<string, string> = {},
): { transport: StdioClientTransport; said(): string } {
  const transport = new StdioClientTransport({ command: bin, args: [...args], env: environment(env), stderr: "pipe" });
  let said = "";
  transport.stderr?.on("data", (chunk: Buffer) => (said += chunk));
  return { transport, said: () => said };
}

/** `mitos-mcp` as a process whose lines a test writes and reads itself. */
export interface RawMcp extends AsyncDisposable {
  readonly child: ChildProcessWithoutNullStreams;
  write(...lines: readonly string[]): void;
  /** The next line that it prints. */
  next(): Promise<Record<string, unknown>>;
  said(): string;
  /** Its exit code. */
  ended: Promise<number | null>;
}

export function startRaw(args: readonly string[], env: Record<string, string> = {}): RawMcp {
  const child = spawn(bin, [...args], { env: environment(env) });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  let said = "";
  child.stderr.on("data", (chunk: Buffer) => (said += chunk));
  const ended = once(child, "close").then(([code]) => code as number | null);
  return {
    child,
    write: (...written) => void child.stdin.write(written.map((line) => `${line}\n`).join("")),
    async next() {
      const { value, done } = await lines.next();
      if (done) throw new Error(`mitos-mcp has ended: ${said}`);
      return JSON.parse(value);
    },
    said: () => said,
    ended,
    async [Symbol.asyncDispose]() {
      child.kill("SIGKILL");
      await ended;
    },
  };
}

export const initialize = JSON.stringify({
  jsonrpc: "2.0",
  id: "init",
  method: "initialize",
  params: { protocolVersion: "2025-06-18", capabilities: {}, clientInfo: { name: "test", version: "1" } },
});

export function request(id: number, method: string, params?: unknown): string {
  return JSON.stringify({ jsonrpc: "2.0", id, method, ...(params === undefined ? {} : { params }) });
}

/** A server for HTTP, started by its program. Resolves when it listens. */
export async function startHttpProgram(args: readonly string[], env: Record<string, string> = {}): Promise<RawMcp & { url: string }> {
  const program = startRaw(["--http", "--addr", "127.0.0.1:0", ...args], env);
  await until("mitos-mcp listens", () => /\/mcp, client/.test(program.said()) || program.child.exitCode !== null);
  if (program.child.exitCode !== null) throw new Error(`mitos-mcp has ended: ${program.said()}`);
  return Object.assign(program, { url: /http:\S+\/mcp/.exec(program.said())![0] });
}
