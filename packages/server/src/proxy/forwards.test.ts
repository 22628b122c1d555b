import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Server } from "node:net";
import { limits } from "@mitos/protocol";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { post, send, useServer } from "../testing/harness.ts";
import { LoopbackTunnels } from "../testing/loopback-tunnel.ts";

/** Answers with all that it was sent, once it has been sent everything. */
let program: Server;
beforeAll(async () => {
  program = createServer({ allowHalfOpen: true }, async (socket) => {
    const parts: Buffer[] = [];
    try {
      for await (const part of socket.iterator({ destroyOnReturn: false })) parts.push(part as Buffer);
      socket.end(Buffer.concat([Buffer.from("got "), ...parts]));
    } catch {
      socket.destroy();
    }
  }).listen(0, "127.0.0.1");
  await once(program, "listening");
});
afterAll(() => new Promise((resolve) => program.close(resolve)));

const at = useServer();
const tunnels = new LoopbackTunnels();
beforeEach(() => {
  at.engine.driverName = "gvisor";
  at.runtime.tunnel = tunnels.tunnel as never;
});
afterEach(() => expect.poll(() => tunnels.open, { timeout: 3000 }).toBe(0));

const guestPort = () => (program.address() as AddressInfo).port;
const forward = (guest_port: unknown = guestPort(), id = "sb-1") => post(at, `/v1/sandboxes/${id}/forward`, { guest_port });

/** Sends everything, ends its side, and reads to the end. */
async function talk(host: string, text: string): Promise<string> {
  const [, port] = host.split(":");
  const socket = connect({ port: Number(port), host: "127.0.0.1", allowHalfOpen: true });
  let seen = "";
  socket.on("data", (data) => {
    seen += data;
  });
  socket.end(text);
  await once(socket, "close");
  return seen;
}

describe("a forward", () => {
  it("is a listener on loopback that leads to the port, also after the client has ended its side", async () => {
    const answer = await forward();
    expect(answer).toMatchObject({ status: 200, json: { guest_port: guestPort() } });
    expect(answer.json.host).toMatch(/^127\.0\.0\.1:\d+$/);
    expect(await talk(answer.json.host, "hello")).toBe("got hello");
  });

  it("asked for twice is the same listener, and another port has another", async () => {
    const [one, two, other] = await Promise.all([forward(), forward(), forward(1)]);
    expect(two.json.host).toBe(one.json.host);
    expect(other.json.host).not.toBe(one.json.host);
  });

  it("that would be one too many is refused with 429", async () => {
    const answers = await Promise.all(Array.from({ length: limits.forwardsPerSandboxMax }, (_, index) => forward(index + 1)));
    expect(new Set(answers.map(({ status }) => status))).toEqual(new Set([200]));
    expect((await forward(1)).status).toBe(200);
    const refused = await forward(60_000);
    expect([refused.status, refused.json.error.code]).toEqual([429, "too_many_streams"]);
  });

  it("closes with its sandbox, and so do its connections", async () => {
    const { host } = (await forward()).json;
    const socket = connect(Number(host.split(":")[1]), "127.0.0.1");
    socket.write("begun");
    await expect.poll(() => tunnels.open).toBe(1);
    const closed = once(socket, "close").catch(() => {});
    await send(at, "DELETE", "/v1/sandboxes/sb-1");
    await closed;
    await expect(talk(host, "")).rejects.toMatchObject({ code: "ECONNREFUSED" });
  });

  it("outlives a pause, in which it takes no connection", async () => {
    const { host } = (await forward()).json;
    await post(at, "/v1/pause", { sandbox: "sb-1" });
    await expect(talk(host, "")).rejects.toMatchObject({ code: "ECONNRESET" });
    await post(at, "/v1/resume", { sandbox: "sb-1" });
    expect(await talk(host, "hello")).toBe("got hello");
  });

  it("to a port where nothing listens resets the connection", async () => {
    await expect(talk((await forward(1)).json.host, "")).rejects.toMatchObject({ code: "ECONNRESET" });
  });

  it("closes with the server", async () => {
    const { host } = (await forward()).json;
    await at.server.close();
    await expect(talk(host, "")).rejects.toMatchObject({ code: "ECONNREFUSED" });
  });

  it.each([
    ["a port out of range", () => forward(0), 400, "invalid_input"],
    ["a port that is no number", () => forward("80"), 400, "invalid_input"],
    ["an unknown sandbox", () => forward(80, "none"), 404, "not_found"],
    ["a sandbox that cannot be", () => forward(80, "with%20space"), 404, "not_found"],
  ] as const)("of %s is refused", async (_what, ask, status, code) => {
    const answer = await ask();
    expect([answer.status, answer.json.error.code]).toEqual([status, code]);
  });

  it("of a mock engine is not supported, whatever is asked", async () => {
    at.engine.driverName = "mock";
    expect((await forward(0, "none")).status).toBe(501);
  });
});
