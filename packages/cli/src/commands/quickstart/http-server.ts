import { readFileSync } from "node:fs";
import type { Sandbox } from "@mitos/sdk";
import { CommandError } from "../../exit.ts";

/** What the server in the sandbox says about itself. The token was drawn when its process started: only that process knows it. */
export interface ServerState {
  readonly pid: number;
  readonly port: number;
  readonly token: string;
  readonly note: string;
}

const serverProgram = program("server.py");
const clientProgram = program("client.py");
const startTimeoutMs = 30_000;

/** Starts it in the background and waits until it has said its port. */
export async function startHttpServer(sandbox: Sandbox, note: string): Promise<ServerState> {
  const server = sandbox.execBackground(["python3", "-c", serverProgram, note]);
  const decoder = new TextDecoder();
  let printed = "";
  for await (const event of server.output({ signal: AbortSignal.timeout(startTimeoutMs) })) {
    if (event.type === "exit") break;
    if (event.type !== "gap") printed += decoder.decode(event.data, { stream: true });
    const port = /^(\d+)\n/.exec(printed)?.[1];
    if (port) return askServer(sandbox, Number(port));
  }
  throw new CommandError("the HTTP server in the sandbox did not start", printed, "Run `mitos doctor` and report both outputs.");
}

/** Asks it from inside the sandbox, over the sandbox's own loopback; with `note`, gives it new content first. */
export async function askServer(sandbox: Sandbox, port: number, note?: string): Promise<ServerState> {
  const { exitCode, stdout, stderr } = await sandbox.exec(["python3", "-c", clientProgram, String(port), ...(note ? [note] : [])]);
  if (exitCode === 0) return { ...(JSON.parse(stdout) as Omit<ServerState, "port">), port };
  throw new CommandError(`the HTTP server in ${sandbox.id} did not answer`, stderr.trim(), "Run `mitos doctor` and report both outputs.");
}

function program(name: string): string {
  return readFileSync(new URL(name, import.meta.url), "utf8");
}
