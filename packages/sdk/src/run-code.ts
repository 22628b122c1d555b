import { decodeBase64 } from "./base64.ts";
import { AgentRunError, isObject } from "./errors.ts";
import { readNdjson } from "./ndjson.ts";

/** One display of a cell: the same thing in several MIME types. Binary types (images, PDF) are base64 text. */
export class Result {
  readonly data: Readonly<Record<string, string>>;
  /** Whether it is the value of the cell's last expression. */
  readonly isMainResult: boolean;

  constructor(data: Readonly<Record<string, string>>, isMainResult = false) {
    this.data = data;
    this.isMainResult = isMainResult;
  }

  get text(): string | undefined {
    return this.data["text/plain"];
  }
  get png(): string | undefined {
    return this.data["image/png"];
  }
  get jpeg(): string | undefined {
    return this.data["image/jpeg"];
  }
  get svg(): string | undefined {
    return this.data["image/svg+xml"];
  }
  get html(): string | undefined {
    return this.data["text/html"];
  }
  get markdown(): string | undefined {
    return this.data["text/markdown"];
  }
  get latex(): string | undefined {
    return this.data["text/latex"];
  }
  get pdf(): string | undefined {
    return this.data["application/pdf"];
  }
  /** As JSON text. */
  get json(): string | undefined {
    return this.data["application/json"];
  }
  /** A Vega-Lite or Vega specification, as JSON text. */
  get chart(): string | undefined {
    return this.data["application/vnd.vegalite.v5+json"] ?? this.data["application/vnd.vega.v5+json"];
  }
}

/** An exception of the code: a result, not a failure of the call. */
export interface ExecutionError {
  name: string;
  value: string;
  traceback: string[];
}

/** What a run of code gave. It is a result also when the code raised: `error`. */
export interface Execution {
  /** The value of the last expression as text; null when it has none. */
  text: string | null;
  /** One entry per piece that arrived, not per line. */
  logs: { stdout: string[]; stderr: string[] };
  results: Result[];
  error: ExecutionError | null;
}

const utf8 = new TextDecoder();

/** Called while the code runs. */
export interface RunCodeCallbacks {
  onStdout?: ((text: string) => void) | undefined;
  onStderr?: ((text: string) => void) | undefined;
  onResult?: ((result: Result) => void) | undefined;
}

/** Folds the messages of RunCodeStream. @throws run_code_stream_truncated when the terminal exit frame is missing */
export async function parseRunCodeConnect(
  messages: AsyncIterable<Record<string, unknown>>,
  callbacks: RunCodeCallbacks = {},
): Promise<Execution> {
  const fold = new ExecutionFold(callbacks);
  for await (const message of messages) {
    if (typeof message.stdout === "string") fold.stdout(decodeBase64(message.stdout));
    else if (typeof message.stderr === "string") fold.stderr(decodeBase64(message.stderr));
    else if (isObject(message.result)) fold.result(textOf(message.result.text), decodeValues(message.result.data));
    else if (isObject(message.error)) fold.error(message.error);
    else if (message.exitCode !== undefined) return fold.end();
  }
  throw truncated();
}

/** Folds the lines of the older `/v1/run_code/stream`. @throws run_code_stream_truncated */
export async function parseRunCodeStream(body: ReadableStream<Uint8Array>, callbacks: RunCodeCallbacks = {}): Promise<Execution> {
  const fold = new ExecutionFold(callbacks);
  for await (const line of readNdjson(body)) {
    if (line.kind === "stdout") fold.stdout(decodeBase64(textOf(line.stdout)));
    else if (line.kind === "stderr") fold.stderr(decodeBase64(textOf(line.stderr)));
    else if (line.kind === "result" && isObject(line.result)) fold.result(textOf(line.result.text), textValues(line.result.data));
    else if (line.kind === "error" && isObject(line.error)) fold.error(line.error);
    else if (line.kind === "exit") return fold.end();
  }
  throw truncated();
}

class ExecutionFold {
  readonly #callbacks: RunCodeCallbacks;
  readonly #execution: Execution = { text: null, logs: { stdout: [], stderr: [] }, results: [], error: null };
  readonly #stdout = new TextDecoder();
  readonly #stderr = new TextDecoder();

  constructor(callbacks: RunCodeCallbacks) {
    this.#callbacks = callbacks;
  }

  stdout(data: Uint8Array): void {
    const text = this.#stdout.decode(data, { stream: true });
    if (text === "") return;
    this.#execution.logs.stdout.push(text);
    this.#callbacks.onStdout?.(text);
  }

  stderr(data: Uint8Array): void {
    const text = this.#stderr.decode(data, { stream: true });
    if (text === "") return;
    this.#execution.logs.stderr.push(text);
    this.#callbacks.onStderr?.(text);
  }

  /** @param text - not empty only for the value of the last expression; the last of several wins */
  result(text: string, data: Record<string, string>): void {
    if (text !== "") {
      this.#execution.text = text;
      data["text/plain"] ??= text;
    }
    const result = new Result(data, text !== "");
    this.#execution.results.push(result);
    this.#callbacks.onResult?.(result);
  }

  error(error: Record<string, unknown>): void {
    const traceback = Array.isArray(error.traceback) ? error.traceback.map(String) : [];
    this.#execution.error = { name: textOf(error.name), value: textOf(error.value), traceback };
  }

  end(): Execution {
    return this.#execution;
  }
}

function textOf(value: unknown): string {
  return typeof value === "string" ? value : "";
}

function textValues(data: unknown): Record<string, string> {
  if (!isObject(data)) return {};
  return Object.fromEntries(Object.entries(data).map(([type, value]) => [type, textOf(value)]));
}

function decodeValues(data: unknown): Record<string, string> {
  return Object.fromEntries(Object.entries(textValues(data)).map(([type, value]) => [type, utf8.decode(decodeBase64(value))]));
}

function truncated(): AgentRunError {
  return new AgentRunError("the code's output ended before the terminal exit frame", {
    code: "run_code_stream_truncated",
    cause: "the connection ended without the terminal exit frame",
    remediation: "Run the code again if it is safe to; the kernel may have run it to its end.",
  });
}
