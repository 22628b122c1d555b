import { type ChildProcess, spawn } from "node:child_process";
import { pipeline } from "node:stream/promises";
import { MitosError } from "@mitos/protocol";
import { diskFull } from "../storage-error.ts";

const stderrCharactersMax = 64 * 1024;

/** The last line of stderr of a `mitos-layers` that failed. */
interface ToolFailure {
  readonly reason: "hostile" | "corrupt" | "too_large" | "disk_full" | "internal";
  /** Path of the entry that it is about; empty when it is about none. */
  readonly entry: string;
  readonly detail: string;
}

export interface ToolOptions {
  readonly input?: AsyncIterable<Uint8Array> | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Told of what the tool has taken. */
  readonly onBytes?: ((bytes: number) => void) | undefined;
}

/**
 * Runs `mitos-layers` to its end and answers what it says on stdout. Nothing of it runs on when this settles.
 *
 * @throws build_failed, quota_exceeded, internal; canceled; what `input` throws
 */
export async function runTool(tool: string, args: readonly string[], options: ToolOptions = {}): Promise<string> {
  const child = start(tool, args, options);
  let stdout = "";
  child.process.stdout?.setEncoding("utf8").on("data", (text: string) => {
    stdout += text;
  });
  await child.ended(options.input ? feed(child.process, options.input, options.onBytes) : Promise.resolve());
  return stdout;
}

/** As `runTool`, but what it writes is handed on as it comes. Leaving early ends it. */
export async function* readTool(
  tool: string,
  args: readonly string[],
  options: Pick<ToolOptions, "signal"> = {},
): AsyncGenerator<Uint8Array> {
  const child = start(tool, args, options);
  const { stdout } = child.process;
  let whole = false;
  try {
    if (stdout) for await (const chunk of stdout) yield chunk as Uint8Array;
    whole = true;
  } finally {
    if (!whole) child.process.kill("SIGKILL");
    const ended = child.ended(Promise.resolve());
    // Who leaves early asks for no more, and does not hear of the kill.
    await (whole ? ended : ended.catch(() => {}));
  }
}

function start(tool: string, args: readonly string[], { input, signal }: ToolOptions) {
  if (signal?.aborted) throw canceled(signal.reason);
  const process = spawn(tool, args, {
    // Whatever a tar may do to it, it knows nothing of this server.
    env: { PATH: globalThis.process.env.PATH ?? "" },
    stdio: [input ? "pipe" : "ignore", "pipe", "pipe"],
  });
  const kill = () => void process.kill("SIGKILL");
  signal?.addEventListener("abort", kill, { once: true });
  let stderr = "";
  process.stderr?.setEncoding("utf8").on("data", (text: string) => {
    stderr = (stderr + text).slice(-stderrCharactersMax);
  });
  const closed = new Promise<{ code: number | null; by: string | null } | Error>((resolve) => {
    process.once("error", resolve);
    process.once("close", (code, by) => resolve({ code, by }));
  });

  /** `fed` rejects with what the source of the input threw. */
  const ended = async (fed: Promise<void>): Promise<void> => {
    const sourceFailure = await fed.then(
      () => undefined,
      (reason: unknown) => ({ reason }),
    );
    if (sourceFailure) kill();
    const end = await closed;
    signal?.removeEventListener("abort", kill);
    if (signal?.aborted) throw canceled(signal.reason);
    if (sourceFailure) throw sourceFailure.reason;
    if (end instanceof Error) throw new MitosError("internal", { cause: `mitos-layers could not be started: ${end.message}`, reason: end });
    if (end.code !== 0) throw failure(args[0] ?? "", stderr, end);
  };
  return { process, ended };
}

/** Hands over chunk by chunk, each when the one before was taken. A tool that ends early wants no more: why, its end says. */
async function feed(child: ChildProcess, input: AsyncIterable<Uint8Array>, onBytes?: (bytes: number) => void): Promise<void> {
  if (!child.stdin) return;
  let sourceFailure: { reason: unknown } | undefined;
  const source = async function* () {
    try {
      for await (const chunk of input) {
        yield chunk;
        onBytes?.(chunk.byteLength);
      }
    } catch (reason) {
      sourceFailure = { reason };
      throw reason;
    }
  };
  try {
    await pipeline(source, child.stdin);
  } catch {
    if (sourceFailure) throw sourceFailure.reason;
  }
}

function failure(command: string, stderr: string, end: { code: number | null; by: string | null }): MitosError {
  const said = parseFailure(stderr);
  if (!said) {
    const how = end.by ? `was killed by ${end.by}` : `ended with ${end.code}`;
    return new MitosError("internal", { cause: `mitos-layers ${command} ${how}`, reason: new Error(stderr.trim() || "it said nothing") });
  }
  const where = said.entry ? `${said.entry}: ${said.detail}` : said.detail;
  const reason = new Error(`mitos-layers ${command}: ${said.reason}: ${where}`);
  if (said.reason === "disk_full") return diskFull("the data directory", reason);
  if (said.reason === "internal") return new MitosError("internal", { cause: `mitos-layers ${command}: ${where}`, reason });
  return new MitosError("build_failed", {
    ...texts[said.reason],
    cause: where,
    context: { reason: said.reason, entry: said.entry },
    reason,
  });
}

const texts = {
  hostile: {
    message: "a layer holds what could reach out of its place, and was not unpacked",
    remediation: "Build the image anew with ordinary tools, or take another one; the cause names the entry.",
  },
  corrupt: {
    message: "a layer is damaged or incomplete",
    remediation: "Pull or push the image again; if that does not help, build it anew. The cause says what is wrong.",
  },
  too_large: {
    message: "a layer is larger than what this server unpacks",
    remediation: "Take a smaller image, or split the layer; the cause names the limit.",
  },
} as const satisfies Partial<Record<ToolFailure["reason"], { message: string; remediation: string }>>;

function parseFailure(stderr: string): ToolFailure | undefined {
  try {
    const said = JSON.parse(stderr.trimEnd().split("\n").at(-1) ?? "") as ToolFailure;
    return typeof said.reason === "string" ? said : undefined;
  } catch {
    return undefined;
  }
}

export function canceled(reason: unknown): MitosError {
  return reason instanceof MitosError ? reason : new MitosError("canceled", { reason });
}
