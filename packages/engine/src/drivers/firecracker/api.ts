import { Agent, type ClientRequest, type IncomingMessage, request } from "node:http";
import { MitosError } from "@mitos/protocol";
import { canConnect } from "../host/can-connect.ts";

/** Of one call: the largest writes the whole memory of a machine. */
const callTimeoutMs = 30_000;
const socketPauseMs = 5;
/** Firecracker itself refuses bodies over 50 KiB. */
const answerBytesMax = 64 * 1024;

/** One call of Firecracker's API, as it is sent. */
export interface Call {
  readonly method: "PUT" | "PATCH";
  readonly path: string;
  readonly body: Readonly<Record<string, unknown>>;
}

/** What a VMM's API server is asked, over its unix socket. One call at a time: the server takes them one after the other. */
export class FirecrackerApi {
  readonly #socketPath: string;
  readonly #agent = new Agent({ keepAlive: true, maxSockets: 1 });

  constructor(socketPath: string) {
    this.#socketPath = socketPath;
  }

  /**
   * In this order, up to the first that is refused.
   * @throws internal with the VMM's own words
   */
  async run(calls: readonly Call[]): Promise<void> {
    for (const { method, path, body } of calls) await this.#send(method, path, JSON.stringify(body));
  }

  close(): void {
    this.#agent.destroy();
  }

  async #send(method: Call["method"], path: string, body: string): Promise<void> {
    const { status, text } = await new Promise<{ status: number; text: string }>((resolve, reject) => {
      const asked: ClientRequest = request({
        socketPath: this.#socketPath,
        agent: this.#agent,
        method,
        path,
        // With its length: the VMM's HTTP server knows no chunked bodies.
        headers: { accept: "application/json", "content-type": "application/json", "content-length": Buffer.byteLength(body) },
        signal: AbortSignal.timeout(callTimeoutMs),
      });
      asked.on("response", (response) => readText(response).then((text) => resolve({ status: response.statusCode ?? 0, text }), reject));
      asked.on("error", reject);
      asked.end(body);
    }).catch((reason: unknown) => {
      throw new MitosError("internal", { cause: `${method} ${path}: ${lostReason(reason)}`, reason });
    });
    if (status !== 204 && status !== 200) throw new MitosError("internal", { cause: `${method} ${path}: ${faultOf(text, status)}` });
  }
}

/**
 * Resolves when somebody listens on the socket, which the VMM makes when it is ready.
 * @throws internal
 */
export async function socketReady(socketPath: string, timeoutMs: number, hasEnded: () => Promise<boolean>): Promise<void> {
  const untilMs = performance.now() + timeoutMs;
  while (!(await canConnect(socketPath))) {
    if (await hasEnded()) throw new MitosError("internal", { cause: "Firecracker ended before it took calls" });
    if (performance.now() > untilMs) throw new MitosError("internal", { cause: `Firecracker took no calls within ${timeoutMs} ms` });
    await new Promise((resolve) => setTimeout(resolve, socketPauseMs));
  }
}

async function readText(response: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of response) {
    bytes += (chunk as Buffer).length;
    if (bytes > answerBytesMax) throw new Error("its answer is too long");
    chunks.push(chunk as Buffer);
  }
  return Buffer.concat(chunks).toString("utf8");
}

function faultOf(text: string, status: number): string {
  try {
    const { fault_message: message } = JSON.parse(text) as { fault_message?: unknown };
    if (typeof message === "string") return message.slice(0, 1024);
  } catch {
    // Said in another form: below.
  }
  return `Firecracker answered ${status}${text ? `: ${text.slice(0, 256)}` : ""}`;
}

function lostReason(reason: unknown): string {
  const error = reason instanceof Error ? reason : new Error(String(reason));
  return error.name === "TimeoutError" || error.name === "AbortError" ? `no answer within ${callTimeoutMs} ms` : error.message;
}
