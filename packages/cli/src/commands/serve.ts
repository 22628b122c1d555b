import { once } from "node:events";
import { isIP } from "node:net";
import path from "node:path";
import type { ImageOptions } from "@mitos/engine";
import { Command, Option } from "commander";
import { byteCount, wholeNumber } from "../context.ts";
import { CommandError, UsageError } from "../exit.ts";
import {
  type Address,
  createLog,
  defaultDataDir,
  engineFlags,
  engineOptions,
  type LogLevel,
  logLevels,
  startLocalServer,
} from "../local-server.ts";
import { print } from "../output.ts";
import { withProgress } from "../progress.ts";
import { interruptible } from "../signals.ts";

interface ServeOptions {
  addr: string;
  dataDir?: string;
  ephemeral?: boolean;
  auth?: boolean;
  auditLog?: string;
  maxStreamsPerSandbox?: number;
  maxExecTimeoutSeconds?: number;
  previewDomain?: string;
  previewTtlSeconds?: number;
  previews: boolean;
  registry?: string | undefined;
  mirror?: readonly string[] | undefined;
  insecureRegistry?: readonly string[] | undefined;
  imageCache?: number | undefined;
  poolSize?: number | undefined;
  logLevel: LogLevel;
  otel?: boolean;
}

/** Each takes some 40 MiB while it waits. */
const poolSizeMax = 256;

export function serveCommand(): Command {
  const command = new Command("serve")
    .option("--addr <host:port>", "where to listen; loopback only unless --auth, port 0 takes any free one", "127.0.0.1:8080")
    .option("--data-dir <dir>", "where its state lies (default: $XDG_DATA_HOME/mitos, else ~/.local/share/mitos)")
    .option("--ephemeral", "end all sandboxes when the server stops; otherwise they run on and the next server finds them")
    .option("--auth", "ask every request for a key (`mitos auth keys`)")
    .option("--audit-log <file>", "append a line of JSON for each action; - for standard error")
    .option(
      "--max-streams-per-sandbox <n>",
      "exec streams open at once on one sandbox (default: 16; 0: any number)",
      wholeNumber("--max-streams-per-sandbox", 0),
    )
    .option(
      "--max-exec-timeout-seconds <n>",
      "ceiling of every requested time-out (default: 86400; 0: none)",
      wholeNumber("--max-exec-timeout-seconds", 0),
    )
    .option(
      "--preview-domain <domain>",
      "previews are https://<label>.<domain>/ (default: below localhost and below this server's address)",
    )
    .option("--preview-ttl-seconds <n>", "how long the URL of a preview is valid (default: 3600)", wholeNumber("--preview-ttl-seconds", 1))
    .option("--no-previews", "answer 501 to whoever asks for a preview")
    .option(
      "--registry <host>",
      "registry of images that name none; asked for short names such as python too (default: docker.io, which is not asked for those)",
    )
    .option("--mirror <registry=host>", "where images of a registry are asked for first; may be given several times", oneMore)
    .option("--insecure-registry <host>", "registry that speaks plain HTTP; may be given several times", oneMore)
    .option(
      "--image-cache <size>",
      "what images that nothing uses may take of the disk before the oldest are removed (default: 20GiB)",
      byteCount("--image-cache"),
    )
    .option(
      "--pool-size <n>",
      "machines that wait for the next creates at most; how many do follows demand (default: 8; 0: none)",
      wholeNumber("--pool-size", 0, poolSizeMax),
    )
    .addOption(new Option("--log-level <level>", "what is logged, as JSON lines on standard error").choices(logLevels).default("warn"))
    .option(
      "--otel",
      "send OpenTelemetry traces; also on when OTEL_EXPORTER_OTLP_ENDPOINT is set (default collector: http://localhost:4318)",
    )
    .action(serve);
  for (const option of engineOptions()) command.addOption(option);
  return command;
}

async function serve(all: ServeOptions, command: Command): Promise<void> {
  const { addr, dataDir, ephemeral, auth = false, registry, mirror, insecureRegistry, imageCache, ...settings } = all;
  const address = parseAddress(addr, auth);
  const chosen = engineFlags(command);
  const images = await imageOptions({ registry, mirror, insecureRegistry, imageCache });
  const dir = path.resolve(dataDir ?? defaultDataDir());
  using interrupt = interruptible();
  const { guardProcess } = await import("@mitos/server");
  using guard = guardProcess(createLog(settings.logLevel));
  const options = { auth, images, ...settings, previewSecret: previewSecret() };
  const server = await withProgress("starting the engine", startLocalServer(address, dir, chosen, options));
  print(
    [
      `Mitos listens on ${server.url}`,
      `  engine     ${server.driverName}`,
      `  isolation  ${server.isolation}${server.isolation === "mock" ? " (nothing runs in its sandboxes)" : ""}`,
      `  data       ${dir}`,
      ...(auth ? ["  keys       required"] : []),
      ...(isLoopback(address.host)
        ? []
        : ["  note       this is plain HTTP: put a reverse proxy with TLS in front, or keys travel in the clear"]),
    ].join("\n"),
  );
  if (server.firstKey) {
    print(
      `\nThe first key, with the scope admin. It is shown only now:\n\n  ${server.firstKey}\n\nKeep it with: mitos auth login --token <key>`,
    );
  }
  const stop = AbortSignal.any([interrupt.signal, guard.broken]);
  if (!stop.aborted) await once(stop, "abort");
  process.stderr.write(ephemeral ? "stopping, and ending all sandboxes\n" : "stopping; sandboxes run on\n");
  await withProgress("stopping", server.close(ephemeral ? "end" : "keep"));
  if (guard.broken.aborted) {
    throw new CommandError(
      "the server has ended because of a defect of its own",
      "an error was caught by nobody; its line in the log has the stack",
      "Start it again, and report that line.",
    );
  }
}

/** It comes by the environment only: a command line is everybody's to read. */
function previewSecret(): Buffer | undefined {
  const secret = process.env.MITOS_PREVIEW_SECRET;
  return secret === undefined ? undefined : Buffer.from(secret);
}

/** @throws UsageError (exit code 2): without keys only this machine may reach the server */
function parseAddress(addr: string, auth: boolean): Address {
  const match = /^(?:\[([^\]]*)\]|([^:]*)):(\d{1,5})$/.exec(addr);
  const host = match?.[1] ?? match?.[2] ?? "";
  const port = Number(match?.[3]);
  if (!match || port > 65_535) throw new UsageError(`--addr ${addr} is not valid`, "Give host:port, for example 127.0.0.1:8080.");
  if (auth) return { host: host || "0.0.0.0", port };
  if (isLoopback(host)) return { host, port };
  throw new UsageError(
    `--addr ${addr} would be reachable from other machines, and this server has no keys`,
    "Listen on 127.0.0.1, [::1] or localhost and use an SSH tunnel from elsewhere, or ask for keys with --auth.",
  );
}

function isLoopback(host: string): boolean {
  if (isIP(host) === 4) return host.startsWith("127.");
  return host === "::1" || host === "localhost";
}

function oneMore(text: string, sofar: readonly string[] = []): string[] {
  return [...sofar, text];
}

/** @throws UsageError */
async function imageOptions(flags: Pick<ServeOptions, "registry" | "mirror" | "insecureRegistry" | "imageCache">): Promise<ImageOptions> {
  const { isRegistryHost } = await import("@mitos/protocol");
  const hostOf = (flag: string, value: string, host: string) => {
    if (isRegistryHost(host)) return host;
    throw new UsageError(
      `${flag} ${value} is not valid`,
      `Give ${flag === "--mirror" ? "registry=host, both" : "a host"} without scheme or path, such as registry.example or localhost:5000.`,
    );
  };
  const mirrors: Record<string, string[]> = {};
  for (const value of flags.mirror ?? []) {
    const [registry = "", host = ""] = value.split(/=(.*)/s);
    const of = hostOf("--mirror", value, registry);
    mirrors[of] = [...(mirrors[of] ?? []), hostOf("--mirror", value, host)];
  }
  return {
    registry: flags.registry === undefined ? undefined : hostOf("--registry", flags.registry, flags.registry),
    mirrors,
    insecureRegistries: (flags.insecureRegistry ?? []).map((host) => hostOf("--insecure-registry", host, host)),
    cacheBytesMax: flags.imageCache,
  };
}
