import { decodeBase64, encodeBase64 } from "./base64.ts";
import { AgentRunError, isObject, redact } from "./errors.ts";
import { type Command, collect, type ExecEvent, type ExecResult, execFailed, type OutputCallbacks, requireArgv } from "./exec.ts";
import { type HttpClient, tokenOf } from "./http.ts";
import { readNdjson } from "./ndjson.ts";

/** How a process is started. */
export interface ProcessOptions {
  cwd?: string | undefined;
  env?: Readonly<Record<string, string>> | undefined;
  user?: string | undefined;
  /** Whether writeStdin will be used; otherwise the program reads an empty input. */
  stdin?: boolean | undefined;
  pty?: { term?: string | undefined; cols: number; rows: number } | undefined;
  /** Default: none, it runs until it ends or is killed. */
  timeoutSeconds?: number | undefined;
}

/** A process that was started on its own, also for a while after it has ended. */
export interface ProcessInfo {
  pid: number;
  command: string;
  startedUnix: number;
  state: "running" | "exited";
  exitCode: number | null;
  /** How much it has printed so far: the absolute offsets at which its output ends now. */
  stdoutBytes: number;
  stderrBytes: number;
}

/** Where to go on reading: absolute offsets in the output of the process. Default: its beginning. */
export interface OutputPosition {
  stdoutFrom?: number | undefined;
  stderrFrom?: number | undefined;
}

/** What happens to a process, in the order in which it happened in each stream. */
export type ProcessEvent =
  | { readonly type: "stdout"; readonly offset: number; readonly data: Uint8Array }
  | { readonly type: "stderr"; readonly offset: number; readonly data: Uint8Array }
  /** Output that nobody read in time and that is no longer kept. */
  | { readonly type: "gap"; readonly stream: "stdout" | "stderr"; readonly from: number; readonly to: number }
  | { readonly type: "exit"; readonly exitCode: number; readonly execTimeMs: number };

/** From where to read the output of a process, and how long. */
export interface FollowOptions extends OutputPosition {
  /** False ends with what there is now. Default: true, to the end of the process. */
  follow?: boolean | undefined;
  signal?: AbortSignal | undefined;
}

/** Processes that run on whether anyone listens or not, addressed by pid: also those that a fork's child has inherited. */
export class ProcessClient {
  readonly #http: HttpClient;
  readonly #base: string;

  constructor(http: HttpClient, sandboxId: string) {
    this.#http = http;
    this.#base = `/v1/sandboxes/${sandboxId}/processes`;
  }

  async list(): Promise<ProcessInfo[]> {
    const rows = await this.#http.get(this.#base);
    return (Array.isArray(rows) ? rows : []).filter(isObject).map(toProcessInfo);
  }

  async start(command: Command, options: ProcessOptions = {}, signal?: AbortSignal): Promise<number> {
    const { timeoutSeconds, ...rest } = options;
    const body = {
      ...(typeof command === "string" ? { command } : { args: requireArgv(command) }),
      ...rest,
      ...(timeoutSeconds === undefined ? {} : { timeout_seconds: timeoutSeconds }),
    };
    const answer = await this.#http.post(this.#base, body, undefined, signal);
    const pid = isObject(answer) ? answer.pid : undefined;
    if (Number.isSafeInteger(pid)) return pid as number;
    throw new AgentRunError("the server's answer has no pid", {
      code: "invalid_response",
      cause: "POST …/processes answered without a number in `pid`",
      remediation: "Check that client and server are of matching versions.",
    });
  }

  /**
   * The output of a process from the given offsets. A connection that breaks while the process runs is opened again at the offset
   * reached, so that no byte is lost or seen twice.
   */
  async *output(pid: number, options: FollowOptions = {}): AsyncGenerator<ProcessEvent, void, undefined> {
    const follow = options.follow ?? true;
    const at = { stdout: options.stdoutFrom ?? 0, stderr: options.stderrFrom ?? 0 };
    let failures = 0;
    for (;;) {
      try {
        for await (const line of this.#lines(pid, at, follow, options.signal)) {
          const event = toProcessEvent(line, tokenOf(this.#http));
          // Also where the server only says why it cannot go on.
          if (!event) continue;
          failures = 0;
          if (event.type === "stdout" || event.type === "stderr") at[event.type] = event.offset + event.data.length;
          else if (event.type === "gap") at[event.stream] = event.to;
          yield event;
          if (event.type === "exit") return;
        }
        if (!follow) return;
        // The server ended a followed stream without an exit: it is going away, or a pause has begun.
        if (++failures > reconnectsMax) throw truncatedOutput(pid);
      } catch (error) {
        const lost = error instanceof AgentRunError && error.code === "transport_error";
        if (!lost || ++failures > reconnectsMax) throw error;
      }
      await pauseBetweenTries(failures, options.signal);
    }
  }

  /** Of any size, one request after the other. */
  async writeStdin(pid: number, data: Uint8Array, { close = false }: { close?: boolean } = {}): Promise<void> {
    if (data.length === 0 && !close) return; // nothing that a request could ask for
    let at = 0;
    do {
      const piece = data.subarray(at, at + stdinPieceBytes);
      at += piece.length;
      await this.#http.post(`${this.#base}/${pid}/stdin`, { data: encodeBase64(piece), close: close && at === data.length });
    } while (at < data.length);
  }

  /** @param group - the whole process group. Default: true */
  async signal(pid: number, signal: number, options: { group?: boolean } = {}): Promise<void> {
    await this.#http.post(`${this.#base}/${pid}/signal`, { signal, group: options.group ?? true });
  }

  async resize(pid: number, cols: number, rows: number): Promise<void> {
    await this.#http.post(`${this.#base}/${pid}/resize`, { cols, rows });
  }

  async *#lines(pid: number, at: { stdout: number; stderr: number }, follow: boolean, signal?: AbortSignal) {
    const path = `${this.#base}/${pid}/output?stdout_from=${at.stdout}&stderr_from=${at.stderr}&follow=${follow}`;
    const body = await this.#http.getStream(path, { signal });
    try {
      yield* readNdjson(body);
    } catch (error) {
      throw this.#http.failure("reading the output of a process", error, signal);
    }
  }
}

const reconnectsMax = 5;
/** A quarter of what one request may have, since it is sent as base64 in JSON. */
const stdinPieceBytes = 8 * 1024 * 1024;

async function pauseBetweenTries(failures: number, signal?: AbortSignal): Promise<void> {
  if (failures === 0) return;
  await new Promise<void>((resolve) => {
    const timer = setTimeout(done, 50 * 2 ** failures);
    signal?.addEventListener("abort", done, { once: true });
    function done() {
      clearTimeout(timer);
      signal?.removeEventListener("abort", done);
      resolve();
    }
  });
}

function toProcessInfo(row: Record<string, unknown>): ProcessInfo {
  return {
    pid: Number(row.pid),
    command: String(row.command ?? ""),
    startedUnix: Number(row.started_unix ?? 0),
    state: row.state === "exited" ? "exited" : "running",
    exitCode: typeof row.exit_code === "number" ? row.exit_code : null,
    stdoutBytes: Number(row.stdout_bytes ?? 0),
    stderrBytes: Number(row.stderr_bytes ?? 0),
  };
}

function toProcessEvent(line: Record<string, unknown>, token: string | undefined): ProcessEvent | undefined {
  if (isObject(line.exit)) {
    if (typeof line.exit.error === "string" && line.exit.error) throw execFailed(redact(line.exit.error, token));
    return { type: "exit", exitCode: Number(line.exit.exit_code ?? 0), execTimeMs: Number(line.exit.exec_time_ms ?? 0) };
  }
  if (isObject(line.gap)) {
    return { type: "gap", stream: streamOf(line.gap.stream), from: Number(line.gap.from), to: Number(line.gap.to) };
  }
  if (typeof line.data === "string") {
    return { type: streamOf(line.stream), offset: Number(line.offset ?? 0), data: decodeBase64(line.data) };
  }
  return undefined; // a kind of line that a newer server knows
}

function streamOf(value: unknown): "stdout" | "stderr" {
  return value === "stderr" ? "stderr" : "stdout";
}

function truncatedOutput(pid: number): AgentRunError {
  return new AgentRunError("the output of a process ended before its exit status", {
    code: "exec_stream_truncated",
    cause: `the server ended the output of process ${pid} ${reconnectsMax} times in a row`,
    remediation: "Check with `info()` whether the sandbox still runs; the process goes on and can be followed again.",
  });
}

/** A process that goes on by itself. Its output is kept by the sandbox and can be read again, from any offset, by anybody who has the pid. */
export class BackgroundProcess {
  /** Resolves with the pid; rejects when the process could not be started. */
  readonly started: Promise<number>;
  readonly #client: ProcessClient;
  readonly #stop = new AbortController();
  #following: Promise<ExecResult> | undefined;
  readonly #callbacks: OutputCallbacks;
  #ended = false;

  constructor(client: ProcessClient, started: number | Promise<number>, callbacks: OutputCallbacks = {}) {
    this.#client = client;
    this.#callbacks = callbacks;
    this.started = Promise.resolve(started);
    // Whoever waits sees the failure; a handle that nobody waits for must not end the program.
    this.started.catch(() => {
      this.#ended = true;
    });
    if (callbacks.onStdout || callbacks.onStderr) this.wait().catch(() => undefined);
  }

  /** Resolves when the process has ended, with what it printed (as far as the sandbox has kept it). Exit code 124 is a result here. */
  wait(): Promise<ExecResult> {
    this.#following ??= this.#follow();
    return this.#following;
  }

  /** False once its end has been seen: by `wait`, or by the callbacks. */
  running(): boolean {
    return !this.#ended;
  }

  /** The process's output from the given offsets: everything again, or only what is new. */
  async *output(options: FollowOptions = {}): AsyncGenerator<ProcessEvent, void, undefined> {
    yield* this.#client.output(await this.started, options);
  }

  async writeStdin(data: string | Uint8Array, options: { close?: boolean } = {}): Promise<void> {
    const bytes = typeof data === "string" ? new TextEncoder().encode(data) : data;
    await this.#client.writeStdin(await this.started, bytes, options);
  }

  /** SIGKILL to the whole process group; `wait` then resolves. */
  async kill(signal = 9): Promise<void> {
    await this.#client.signal(await this.started, signal);
  }

  /** Stops listening. The process runs on. */
  disconnect(): void {
    this.#stop.abort(new Error("disconnected"));
  }

  async #follow(): Promise<ExecResult> {
    const pid = await this.started;
    const result = await collect(withoutGaps(this.#client.output(pid, { signal: this.#stop.signal })), this.#callbacks, undefined);
    this.#ended = true;
    return result;
  }
}

/** A gap is visible in `output`; in a joined text it is simply what is missing. */
export async function* withoutGaps(events: AsyncIterable<ProcessEvent>): AsyncGenerator<ExecEvent, void, undefined> {
  for await (const event of events) if (event.type !== "gap") yield event;
}
