import os from "node:os";
import path from "node:path";
import { version } from "./commands/version.ts";
import { CommandError, exitCodes } from "./exit.ts";

export const engines = ["auto", "gvisor", "mock"] as const;
export type EngineName = (typeof engines)[number];

export interface LocalServer {
  readonly url: string;
  readonly driverName: string;
  readonly isolation: string;
  /** Idempotent. `keep` leaves the sandboxes running for the next server of the data directory. */
  close(sandboxes: "keep" | "end"): Promise<void>;
}

export interface Address {
  readonly host: string;
  readonly port: number;
}

/** Opens the engine of the data directory and serves it, in this process. The server's code is loaded only now. */
export async function startLocalServer(address: Address, dataDir: string, engineName: EngineName): Promise<LocalServer> {
  const { openEngine } = await import("@mitos/engine");
  const { startServer } = await import("@mitos/server");
  const engine = await openEngine({ dataDir, engine: engineName, log });
  const server = await startServer({ ...address, engine, log, version: version() }).catch(async (error: unknown) => {
    await engine.close({ sandboxes: "keep" });
    throw portError(error, address);
  });
  let closing: Promise<void> | undefined;
  const close = async (sandboxes: "keep" | "end") => {
    await server.close();
    await engine.close({ sandboxes });
  };
  return {
    url: server.url,
    driverName: engine.driverName,
    isolation: engine.isolation,
    close: (sandboxes) => (closing ??= close(sandboxes)),
  };
}

export function defaultDataDir(): string {
  return path.join(process.env.XDG_DATA_HOME || path.join(os.homedir(), ".local/share"), "mitos");
}

function portError(error: unknown, { host, port }: Address): unknown {
  const code = error instanceof Error && "code" in error ? error.code : undefined;
  if (code === "EADDRINUSE") {
    const remedy = "Stop what listens there, or choose another port: --addr 127.0.0.1:0 takes any free one.";
    return new CommandError(`${host}:${port} is in use`, "another program listens on this address", remedy);
  }
  if (code === "EACCES" || code === "EADDRNOTAVAIL") {
    return new CommandError(`${host}:${port} cannot be used`, String(code), "Choose another address with --addr.", exitCodes.failure);
  }
  return error;
}

/** What goes wrong, one line each on standard error; the rest is for the server's own telemetry. */
const log = {
  debug: () => undefined,
  info: () => undefined,
  warn: (fields: object, message: string) => logLine("warn", fields, message),
  error: (fields: object, message: string) => logLine("error", fields, message),
};

function logLine(level: string, fields: object, message: string): void {
  const record = { time: new Date().toISOString(), level, message, ...fields };
  const text = JSON.stringify(record, (_key, value: unknown) =>
    value instanceof Error ? { message: value.message, stack: value.stack } : value,
  );
  process.stderr.write(`${text}\n`);
}
