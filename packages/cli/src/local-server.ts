import os from "node:os";
import path from "node:path";
import type { Accel, EngineChoice, ImageOptions, Log } from "@mitos/engine";
import type { ServerOptions } from "@mitos/server";
import { type Command, Option } from "commander";
import { version } from "./commands/version.ts";
import { CommandError, exitCodes, UsageError } from "./exit.ts";
import { makeFirstKey, needsFirstKey } from "./first-key.ts";

const engines = ["auto", "gvisor", "microvm", "firecracker", "mock"] as const satisfies readonly EngineChoice[];
const accels = ["kvm", "tcg"] as const satisfies readonly Accel[];

/** What runs sandboxes, as its flags say. */
export interface EngineFlags {
  readonly engine: EngineChoice;
  readonly accel?: Accel;
}

/** Of every command that opens an engine. */
export function engineOptions(): Option[] {
  return [
    orElse(
      "MITOS_ENGINE",
      new Option("--engine <name>", "how sandboxes run: auto takes microVMs where KVM is usable, else gVisor; mock runs nothing")
        .choices(engines)
        .default("auto"),
    ),
    orElse(
      "MITOS_ACCEL",
      new Option(
        "--accel <name>",
        "what runs a microVM's instructions, with --engine microvm: the processor, or an emulator (default: kvm)",
      ).choices(accels),
    ),
  ];
}

/** An empty variable is none: that is how a shell or a unit file takes one back. Commander would take it for a value. */
function orElse(variable: string, option: Option): Option {
  return process.env[variable] === "" ? option : option.env(variable);
}

/**
 * What was said, by flags or else by the environment. There, an accelerator is for when microVMs are taken, and else means nothing.
 *
 * @throws UsageError for the flag without microVMs
 */
export function engineFlags(command: Command): EngineFlags {
  const { engine, accel } = command.opts<EngineFlags>();
  if (!accel || engine === "microvm") return { engine, ...(accel ? { accel } : {}) };
  if (command.getOptionValueSource("accel") === "env") return { engine };
  throw new UsageError(
    `--accel ${accel} says how microVMs run, and the engine is ${engine}`,
    "Say --engine microvm, or leave --accel out.",
  );
}

export interface LocalServer {
  readonly url: string;
  readonly driverName: string;
  readonly isolation: string;
  /** A key that was made because there was none for an administrator. */
  readonly firstKey: string | undefined;
  /** Idempotent. `keep` leaves the sandboxes running for the next server of the data directory. */
  close(sandboxes: "keep" | "end"): Promise<void>;
}

export interface Address {
  readonly host: string;
  readonly port: number;
}

/** Everything of a server that its user may choose. */
export interface LocalServerOptions extends Omit<ServerOptions, "engine" | "host" | "port" | "log" | "version"> {
  readonly logLevel?: LogLevel | undefined;
  readonly images?: ImageOptions | undefined;
  readonly poolSize?: number | undefined;
  /** Traces, also without the variables that ask for them. */
  readonly otel?: boolean | undefined;
}

/** Opens the engine of the data directory and serves it, in this process. The server's code is loaded only now. */
export async function startLocalServer(
  address: Address,
  dataDir: string,
  { engine: engineName, accel }: EngineFlags,
  { logLevel = "warn", images, poolSize, otel = false, ...options }: LocalServerOptions = {},
): Promise<LocalServer> {
  const { openEngine } = await import("@mitos/engine");
  const { startServer, startTelemetry, wantsTelemetry } = await import("@mitos/server");
  const log = createLog(logLevel);
  const telemetry = otel || wantsTelemetry(process.env) ? await startTelemetry({ version: version() }) : undefined;
  const engine = await openEngine({ dataDir, images, poolSize, engine: engineName, accel, log });
  let firstKey: string | undefined;
  const start = async () => {
    const isNeeded = options.auth && needsFirstKey(engine.keys, dataDir);
    const running = await startServer({ ...options, ...address, engine, log, version: version() });
    // Not before: a key of a server that could not listen would never be shown.
    if (isNeeded) firstKey = makeFirstKey(engine.keys);
    return running;
  };
  const server = await start().catch(async (error: unknown) => {
    await engine.close({ sandboxes: "keep" });
    throw portError(error, address);
  });
  let closing: Promise<void> | undefined;
  const close = async (sandboxes: "keep" | "end") => {
    await server.close();
    await engine.close({ sandboxes });
    await telemetry?.close();
  };
  return {
    url: server.url,
    driverName: engine.driverName,
    isolation: engine.isolation,
    firstKey,
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

export const logLevels = ["debug", "info", "warn", "error"] as const;
export type LogLevel = (typeof logLevels)[number];

/** One JSON line on standard error for each event of this level and above. */
export function createLog(from: LogLevel): Log {
  const line = (level: LogLevel) =>
    logLevels.indexOf(level) < logLevels.indexOf(from)
      ? () => undefined
      : (fields: object, message: string) => logLine(level, fields, message);
  return { debug: line("debug"), info: line("info"), warn: line("warn"), error: line("error") };
}

function logLine(level: LogLevel, fields: object, message: string): void {
  const record = { time: new Date().toISOString(), level, message, ...fields };
  const text = JSON.stringify(record, (_key, value: unknown) =>
    value instanceof Error ? { message: value.message, stack: value.stack } : value,
  );
  process.stderr.write(`${text}\n`);
}
