import { describe, expect, it } from "vitest";
import { base64, endOfStream, frame, json, type Respond, startFakeServer, stream } from "../test/fake-server.ts";
import { ConnectClient, encodeEnvelopes, type Message } from "./connect.ts";
import { AgentRunError, NotFoundError, RateLimitedError, UnauthorizedError } from "./errors.ts";

const key = "mitos_sk_secret-value";

async function read(respond: Respond): Promise<Message[]> {
  await using server = await startFakeServer(respond);
  const messages: Message[] = [];
  for await (const message of new ConnectClient(server.url, "sb-conn", key).serverStream("ReadFile", { path: "/a" }))
    messages.push(message);
  return messages;
}

async function failure(work: Promise<unknown>): Promise<AgentRunError> {
  const error = await work.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(AgentRunError);
  return error as AgentRunError;
}

describe("envelopes", () => {
  it("are a flag, a length and JSON", () => {
    expect(Buffer.from(encodeEnvelopes([{ path: "/a" }])).toString("hex")).toBe("000000000d7b2270617468223a222f61227d");
    expect(endOfStream.toString("hex")).toBe("02000000027b7d");
  });

  it("are read however the network cuts them", async () => {
    const all = Buffer.concat([frame({ data: base64("part-one ") }), frame({ data: base64("part-two"), eof: true }), endOfStream]);
    const messages = await read(async (_request, response) => {
      response.writeHead(200, { "Content-Type": "application/connect+json" });
      for (const byte of all) {
        response.write(Buffer.of(byte));
        await new Promise(setImmediate);
      }
      response.end();
    });
    expect(messages).toEqual([{ data: base64("part-one ") }, { data: base64("part-two"), eof: true }]);
  });

  it("are handed on before the stream ends", async () => {
    const { promise: firstSeen, resolve: seen } = Promise.withResolvers<void>();
    await using server = await startFakeServer(async (_request, response) => {
      response.writeHead(200).write(frame({ stdout: base64("first") }));
      await firstSeen;
      response.end(Buffer.concat([frame({ stdout: base64("second") }), endOfStream]));
    });
    const messages: Message[] = [];
    for await (const message of new ConnectClient(server.url, "sb").serverStream("ExecStream", {})) {
      messages.push(message);
      seen();
    }
    expect(messages).toHaveLength(2);
  });

  it("that are compressed or above 64 MiB are refused", async () => {
    const compressed = await failure(read((_request, response) => stream(response, frame({ data: "" }, 1), endOfStream)));
    expect(compressed).toMatchObject({ code: "internal_error", errorCause: expect.stringContaining("compressed") });
    const huge = Buffer.from([0, 0x04, 0, 0, 1]);
    expect(await failure(read((_request, response) => stream(response, huge)))).toMatchObject({ code: "internal_error" });
  });

  it.each([
    ["whoever reads to the end", false],
    ["whoever leaves after the last that says anything", true],
  ])("leave the connection usable for the next call: %s", async (_who, leaves) => {
    await using server = await startFakeServer((_request, response) =>
      stream(response, Buffer.concat([frame({ eof: true }), endOfStream])),
    );
    const client = new ConnectClient(server.url, "sb");
    for (let call = 0; call < 10; call++) {
      for await (const { eof } of client.serverStream("ReadFile", { path: "/a" })) if (eof && leaves) break;
    }
    // Two, because a call may begin a moment before the last connection is back in the pool.
    expect(new Set(server.requests.map(({ connection }) => connection)).size).toBeLessThanOrEqual(2);
  });
});

describe("a request", () => {
  it("names the sandbox, the key and the protocol", async () => {
    await using server = await startFakeServer((_request, response) => json(response, 200, { entries: [] }));
    await new ConnectClient(server.url, "sb-conn", key).unary("List", { parent: "/" });
    expect(server.requests[0]).toMatchObject({ method: "POST", path: "/sandbox.v1.Sandbox/List" });
    expect(server.requests[0]?.headers).toMatchObject({
      "x-sandbox-id": "sb-conn",
      authorization: `Bearer ${key}`,
      "connect-protocol-version": "1",
      "content-type": "application/json",
    });
  });

  it("without a key sends no Authorization", async () => {
    await using server = await startFakeServer((_request, response) => json(response, 200, {}));
    await new ConnectClient(server.url, "sb-conn").unary("List", {});
    expect(server.requests[0]?.headers).not.toHaveProperty("authorization");
  });
});

describe("an error", () => {
  const unary = async (status: number, body: unknown, headers: Record<string, string> = {}) => {
    await using server = await startFakeServer((_request, response) => {
      response.writeHead(status, headers).end(typeof body === "string" ? body : JSON.stringify(body));
    });
    return await failure(new ConnectClient(server.url, "sb", key).unary("List", {}));
  };

  it.each([
    ["not_found", 404, NotFoundError, "not_found"],
    ["resource_exhausted", 429, RateLimitedError, "rate_limited"],
    ["unauthenticated", 401, UnauthorizedError, "unauthorized"],
    ["internal", 500, AgentRunError, "internal"],
  ])("of a unary call with the Connect code %s becomes ours", async (code, status, type, own) => {
    const error = await unary(status, { code, message: "boom" });
    expect(error).toBeInstanceOf(type);
    expect(error).toMatchObject({ code: own, status, errorCause: "boom", context: { connect_code: code } });
    expect(error.remediation).not.toBe("");
  });

  it("has the catalogue's code where the server sends it", async () => {
    const body = { code: "failed_precondition", message: "the sandbox is not running: sandbox sb is paused" };
    expect(await unary(400, body, { "Mitos-Error-Code": "sandbox_not_running" })).toMatchObject({
      code: "sandbox_not_running",
      status: 409,
      message: "the sandbox is not running",
      errorCause: "sandbox sb is paused",
      remediation: expect.stringContaining("Resume"),
    });
  });

  it("in the end of a stream is thrown, with the code of its trailer", async () => {
    const error = { code: "resource_exhausted", message: "16 streams are open" };
    const plain = await failure(read((_request, response) => stream(response, frame({ error }, 2))));
    expect(plain).toMatchObject({ code: "rate_limited", errorCause: "16 streams are open" });
    const metadata = { "mitos-error-code": ["too_many_streams"], "Retry-After": ["3"] };
    const exact = await failure(read((_request, response) => stream(response, frame({ error, metadata }, 2))));
    expect(exact).toMatchObject({ code: "too_many_streams", status: 429 });
    expect(exact.context).toEqual({ connect_code: "resource_exhausted", retry_after_ms: 3000 });
  });

  it("that is no Connect error has the code of its status", async () => {
    expect(await unary(503, "<html>down</html>")).toMatchObject({ code: "unavailable", status: 503 });
  });

  it("never carries the key", async () => {
    const echo = `it was Bearer ${key}`;
    for (const error of [await unary(500, { code: "internal", message: echo }), await unary(500, echo)]) {
      expect(`${error} ${JSON.stringify(error)} ${error.stack}`).not.toContain(key);
      expect(error.errorCause).toContain("[REDACTED]");
    }
  });
});
