import type { Readable, Writable } from "node:stream";
import { type JSONRPCMessage, type McpServerFactory, ProtocolErrorCode, type Transport } from "@modelcontextprotocol/server";
import { serveStdio } from "@modelcontextprotocol/server/stdio";
import { messageBytesMax, type Refusal, receive, refuse } from "./json-rpc.ts";

export interface StdioOptions {
  readonly createServer: McpServerFactory;
  readonly input: Readable;
  readonly output: Writable;
  /** Ends the session as the end of the input does. */
  readonly signal: AbortSignal;
  readonly onerror: (error: Error) => void;
}

/** Serves one client over lines of JSON. Resolves when the input has ended, the output is gone, or the signal has fired. */
export async function serveOverStdio({ createServer, input, output, signal, onerror }: StdioOptions): Promise<void> {
  const transport = new LineTransport(input, output);
  const served = serveStdio(createServer, { transport, onerror });
  const stop = () => void served.close();
  signal.addEventListener("abort", stop, { once: true });
  if (signal.aborted) stop();
  await transport.closed;
  signal.removeEventListener("abort", stop);
}

/**
 * One JSON-RPC message a line. Unlike the SDK's own transport it answers what is not a message (-32700, -32600), and outlives a line that is
 * too long.
 */
class LineTransport implements Transport {
  onmessage?: (message: JSONRPCMessage) => void;
  onclose?: () => void;
  onerror?: (error: Error) => void;
  readonly closed: Promise<void>;
  readonly #input: Readable;
  readonly #output: Writable;
  readonly #lines = new LineSplitter(messageBytesMax);
  readonly #resolveClosed: () => void;
  #isClosed = false;

  constructor(input: Readable, output: Writable) {
    this.#input = input;
    this.#output = output;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.closed = promise;
    this.#resolveClosed = resolve;
  }

  async start(): Promise<void> {
    const close = () => void this.close();
    // What came last gets the turn that it would have had in front of the end.
    const closeSoon = () => setImmediate(close);
    this.#input
      .on("data", (chunk: Buffer) => this.#read(this.#lines.push(chunk)))
      .on("end", () => {
        this.#read(this.#lines.end());
        closeSoon();
      })
      .on("close", closeSoon)
      .on("error", close);
    // A client that has stopped reading has gone.
    this.#output.on("error", close);
    if (this.#input.readableEnded || this.#input.destroyed) close();
  }

  /** Resolves when the client can take more. */
  async send(message: JSONRPCMessage | Refusal): Promise<void> {
    if (this.#isClosed) throw new Error("the client has gone");
    await new Promise<void>((resolve, reject) => {
      this.#output.write(`${JSON.stringify(message)}\n`, (error) => (error ? reject(error) : resolve()));
    });
  }

  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#input.pause();
    this.onclose?.();
    this.#resolveClosed();
  }

  #read(lines: Iterable<Buffer | typeof tooLong>): void {
    for (const line of lines) {
      if (this.#isClosed) return;
      if (line === tooLong) {
        const text = `Invalid Request: a message may have ${messageBytesMax} bytes, and this one is longer`;
        this.#refuse(refuse(null, ProtocolErrorCode.InvalidRequest, text));
        continue;
      }
      const json = line.toString("utf8").trim();
      if (json === "") continue;
      const received = receive(json);
      if ("message" in received) this.onmessage?.(received.message);
      else this.#refuse(received.refusal);
    }
  }

  #refuse(refusal: Refusal): void {
    this.send(refusal).catch((error) => this.onerror?.(error));
  }
}

const tooLong = Symbol("a line that is too long");

/** Bytes to lines, without keeping more of a line than it may have. */
class LineSplitter {
  readonly #bytesMax: number;
  #parts: Buffer[] = [];
  #bytes = 0;

  constructor(bytesMax: number) {
    this.#bytesMax = bytesMax;
  }

  *push(chunk: Buffer): Generator<Buffer | typeof tooLong, void, undefined> {
    let from = 0;
    for (;;) {
      const end = chunk.indexOf("\n", from);
      this.#keep(chunk.subarray(from, end < 0 ? chunk.length : end));
      if (end < 0) return;
      from = end + 1;
      yield this.#take();
    }
  }

  /** The last line, which need not end with a newline. */
  *end(): Generator<Buffer | typeof tooLong, void, undefined> {
    if (this.#bytes > 0) yield this.#take();
  }

  #take(): Buffer | typeof tooLong {
    const line = this.#bytes > this.#bytesMax ? tooLong : Buffer.concat(this.#parts);
    this.#parts = [];
    this.#bytes = 0;
    return line;
  }

  #keep(part: Buffer): void {
    this.#bytes += part.length;
    if (this.#bytes > this.#bytesMax) this.#parts = [];
    else if (part.length > 0) this.#parts.push(part);
  }
}
