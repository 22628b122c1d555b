import { once } from "node:events";
import { isIP } from "node:net";
import path from "node:path";
import { Command, Option } from "commander";
import { UsageError } from "../exit.ts";
import { type Address, defaultDataDir, type EngineName, engines, type LogLevel, logLevels, startLocalServer } from "../local-server.ts";
import { print } from "../output.ts";
import { withProgress } from "../progress.ts";
import { interruptible } from "../signals.ts";

interface ServeOptions {
  addr: string;
  dataDir?: string;
  engine: EngineName;
  ephemeral?: boolean;
  logLevel: LogLevel;
  otel?: boolean;
}

export function serveCommand(): Command {
  return new Command("serve")
    .description("run a server on this machine")
    .option("--addr <host:port>", "where to listen; loopback only, port 0 takes any free one", "127.0.0.1:8080")
    .option("--data-dir <dir>", "where its state lies (default: $XDG_DATA_HOME/mitos, else ~/.local/share/mitos)")
    .addOption(new Option("--engine <name>", "how sandboxes run; mock runs nothing").choices(engines).default("auto"))
    .option("--ephemeral", "end all sandboxes when the server stops; otherwise they run on and the next server finds them")
    .addOption(new Option("--log-level <level>", "what is logged, as JSON lines on standard error").choices(logLevels).default("warn"))
    .option(
      "--otel",
      "send OpenTelemetry traces; also on when OTEL_EXPORTER_OTLP_ENDPOINT is set (default collector: http://localhost:4318)",
    )
    .action(serve);
}

async function serve({ addr, dataDir, engine, ephemeral, logLevel, otel }: ServeOptions): Promise<void> {
  const address = parseLoopback(addr);
  const dir = path.resolve(dataDir ?? defaultDataDir());
  using interrupt = interruptible();
  const server = await withProgress("starting the engine", startLocalServer(address, dir, engine, { logLevel, otel }));
  print(
    [
      `Mitos listens on ${server.url}`,
      `  engine     ${server.driverName}`,
      `  isolation  ${server.isolation}${server.isolation === "mock" ? " (nothing runs in its sandboxes)" : ""}`,
      `  data       ${dir}`,
    ].join("\n"),
  );
  if (!interrupt.signal.aborted) await once(interrupt.signal, "abort");
  process.stderr.write(ephemeral ? "stopping, and ending all sandboxes\n" : "stopping; sandboxes run on\n");
  await withProgress("stopping", server.close(ephemeral ? "end" : "keep"));
}

/** @throws UsageError (exit code 2): without keys only this machine may reach the server */
export function parseLoopback(addr: string): Address {
  const match = /^(?:\[([^\]]*)\]|([^:]*)):(\d{1,5})$/.exec(addr);
  const host = match?.[1] ?? match?.[2] ?? "";
  const port = Number(match?.[3]);
  if (!match || port > 65_535) throw new UsageError(`--addr ${addr} is not valid`, "Give host:port, for example 127.0.0.1:8080.");
  if (isLoopback(host)) return { host, port };
  throw new UsageError(
    `--addr ${addr} would be reachable from other machines, and this server has no keys`,
    "Listen on 127.0.0.1, [::1] or localhost; from elsewhere, use an SSH tunnel.",
  );
}

function isLoopback(host: string): boolean {
  if (isIP(host) === 4) return host.startsWith("127.");
  return host === "::1" || host === "localhost";
}
