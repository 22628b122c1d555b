import { createServer, type IncomingHttpHeaders, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

export interface SeenRequest {
  readonly method: string;
  readonly path: string;
  readonly headers: IncomingHttpHeaders;
  readonly body: Buffer;
  /** Which connection it came on. */
  readonly connection: number;
  json(): Record<string, unknown>;
  /** The JSON of each Connect envelope in the body. */
  messages(): Record<string, unknown>[];
}

export type Respond = (request: SeenRequest, response: ServerResponse) => unknown;

/** Answers with bytes that a test has written down, and keeps what it was asked. */
export interface FakeServer extends AsyncDisposable {
  readonly url: string;
  readonly requests: SeenRequest[];
}

export async function startFakeServer(respond: Respond): Promise<FakeServer> {
  const requests: SeenRequest[] = [];
  const connections = new Map<unknown, number>();
  const server = createServer(async (incoming, response) => {
    const parts: Buffer[] = [];
    try {
      for await (const part of incoming) parts.push(part as Buffer);
    } catch {
      return; // the client went away before it had asked for anything
    }
    const body = Buffer.concat(parts);
    if (!connections.has(incoming.socket)) connections.set(incoming.socket, connections.size);
    const request: SeenRequest = {
      method: incoming.method ?? "",
      path: incoming.url ?? "",
      headers: incoming.headers,
      body,
      connection: connections.get(incoming.socket)!,
      json: () => JSON.parse(body.toString()) as Record<string, unknown>,
      messages: () => messagesOf(body),
    };
    requests.push(request);
    await respond(request, response);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    requests,
    async [Symbol.asyncDispose]() {
      const closed = new Promise((resolve) => server.close(resolve));
      server.closeAllConnections();
      await closed;
    },
  };
}

export function json(response: ServerResponse, status: number, value: unknown): void {
  response.writeHead(status, { "Content-Type": "application/json" }).end(`${JSON.stringify(value)}\n`);
}

export function frame(message: unknown, flags = 0): Buffer {
  const payload = Buffer.from(JSON.stringify(message));
  const header = Buffer.alloc(5);
  header.writeUInt8(flags, 0);
  header.writeUInt32BE(payload.length, 1);
  return Buffer.concat([header, payload]);
}

export const endOfStream = frame({}, 2);

export function stream(response: ServerResponse, ...parts: readonly Buffer[]): void {
  response.writeHead(200, { "Content-Type": "application/connect+json" }).end(Buffer.concat(parts));
}

export function base64(text: string | Uint8Array): string {
  return Buffer.from(text).toString("base64");
}

function messagesOf(body: Buffer): Record<string, unknown>[] {
  const messages: Record<string, unknown>[] = [];
  for (let at = 0; at < body.length; ) {
    const length = body.readUInt32BE(at + 1);
    messages.push(JSON.parse(body.subarray(at + 5, at + 5 + length).toString()) as Record<string, unknown>);
    at += 5 + length;
  }
  return messages;
}
