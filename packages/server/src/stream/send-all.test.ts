import { once } from "node:events";
import { createServer, type ServerResponse } from "node:http";
import { type AddressInfo, connect } from "node:net";
import { describe, expect, it } from "vitest";
import { sendAll } from "./send-all.ts";

/** One answer of a server, sent by `answer` to a client that takes its bytes, or does not. */
async function answered(answer: (response: ServerResponse) => Promise<void>, { reads = true } = {}) {
  const { promise, resolve } = Promise.withResolvers<unknown>();
  await using server = createServer((_, response) => {
    answer(response).then(() => resolve(undefined), resolve);
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  const client = connect((server.address() as AddressInfo).port, "127.0.0.1").on("error", () => {});
  let received = 0;
  if (reads) client.on("data", (bytes) => (received += bytes.length));
  client.write("GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
  const outcome = await promise;
  if (reads && !client.closed) await once(client, "close");
  client.destroy();
  server.closeAllConnections();
  return { outcome, received };
}

describe("the rest of a response", () => {
  const never = new AbortController().signal;

  it("is sent to its end", async () => {
    async function* source() {
      for (let part = 0; part < 100; part += 1) yield Buffer.alloc(50_000);
    }
    const { outcome, received } = await answered((response) => sendAll(source(), response, never));
    expect(outcome).toBe(undefined);
    expect(received).toBeGreaterThan(5_000_000);
  });

  it("is cut off when its source fails, so that nobody takes it for whole", async () => {
    const failure = new Error("the file became shorter");
    async function* source() {
      yield Buffer.alloc(10);
      throw failure;
    }
    const { outcome, received } = await answered((response) => {
      response.writeHead(200, { "content-length": "20" });
      return sendAll(source(), response, never);
    });
    expect(outcome).toBe(failure);
    expect(received).toBeLessThan(300);
  });

  it("ends at once when it is given up while the client takes nothing", async () => {
    const left = new AbortController();
    let given = 0;
    async function* source() {
      for (;;) {
        given += 1;
        if (given === 50) setTimeout(() => left.abort(new Error("given up")), 50);
        yield Buffer.alloc(60_000);
      }
    }
    const { outcome } = await answered((response) => sendAll(source(), response, left.signal), { reads: false });
    expect(outcome).toBeInstanceOf(Error);
    expect(given * 60_000).toBeLessThan(32 * 1024 * 1024);
  });
});
