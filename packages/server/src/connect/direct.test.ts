import { gzipSync } from "node:zlib";
import { create, toBinary } from "@bufbuild/protobuf";
import { sandbox as pb } from "@mitos/protocol/proto";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { AnyRequest } from "../http/guard.ts";
import { type Answer, envelope, type Harness, send, useServer } from "../testing/harness.ts";
import { directFormat } from "./direct.ts";

const json = (message: object) => Buffer.from(JSON.stringify(message));
const unaryJson = { "Content-Type": "application/json" };
const unaryProto = { "Content-Type": "application/proto" };
const streamJson = { "Content-Type": "application/connect+json" };
const streamProto = { "Content-Type": "application/connect+proto" };
const stat = (path: string) => toBinary(pb.StatRequestSchema, create(pb.StatRequestSchema, { path }));
const exec = (command: string) => toBinary(pb.ExecStreamRequestSchema, create(pb.ExecStreamRequestSchema, { command }));

type Headers = Readonly<Record<string, string>>;

/** Its length is not known beforehand, which makes it one for connect-es. */
const long: Headers = { "Transfer-Encoding": "chunked" };

async function call(at: Harness, method: string, body: Uint8Array, headers: Headers): Promise<Omit<Answer, "json">> {
  const answer = await send(at, "POST", `/sandbox.v1.Sandbox/${method}`, body, { "X-Sandbox-Id": "sb-1", ...headers });
  const { "x-request-id": requestId, date, ...rest } = answer.headers;
  expect([requestId, date]).toEqual([expect.any(String), expect.any(String)]);
  return { status: answer.status, headers: rest, text: answer.text };
}

describe("a call is answered the same on the short way and on the long one:", () => {
  const at = useServer({ maxExecTimeoutSeconds: 100 });
  // How long a program ran is in its answer, and how many digits that has in the answer's length: here it is nothing.
  beforeEach(() => void vi.useFakeTimers({ toFake: ["performance"] }));
  afterEach(() => void vi.useRealTimers());

  it.each<[string, string, Uint8Array, Headers]>([
    ["an answer in JSON", "Stat", json({ path: "/f" }), unaryJson],
    ["an answer in protobuf", "Stat", stat("/f"), unaryProto],
    ["a file that is not there", "Stat", json({ path: "/no" }), unaryJson],
    ["one that is not there, in protobuf", "Stat", stat("/no"), unaryProto],
    ["fields that nobody knows", "Stat", json({ path: "/f", later: [1] }), unaryJson],
    ["nothing at all", "Processes", Buffer.alloc(0), unaryJson],
    ["nothing at all, in protobuf", "Processes", Buffer.alloc(0), unaryProto],
    ["what is no JSON", "Stat", Buffer.from("{"), unaryJson],
    ["what is no protobuf", "Stat", Buffer.from([0xff]), unaryProto],
    ["a wrong type", "Stat", json({ path: 7 }), unaryJson],
    ["bytes that are no UTF-8", "Stat", Buffer.from('{"path":"/\xff"}', "latin1"), unaryJson],
    ["a byte order mark", "Stat", Buffer.from('\ufeff{"path":"/f"}'), unaryJson],
    ["what is not served", "Fork", json({}), unaryJson],
    ["a version that is unknown", "Processes", json({}), { ...unaryJson, "Connect-Protocol-Version": "2" }],
    ["no sandbox", "Processes", json({}), { ...unaryJson, "X-Sandbox-Id": "" }],
    ["a sandbox that is not there", "Processes", json({}), { ...unaryJson, "X-Sandbox-Id": "nope" }],
    ["a long answer, compressed", "List", json({ parent: "/many" }), { ...unaryJson, "Accept-Encoding": "deflate, gzip" }],
    ["a long answer, not compressed", "List", json({ parent: "/many" }), { ...unaryJson, "Accept-Encoding": "br" }],
    ["a short answer that might be compressed", "Stat", json({ path: "/f" }), { ...unaryJson, "Accept-Encoding": "gzip" }],
    ["a compressed request", "Stat", gzipSync(json({ path: "/f" })), { ...unaryJson, "Content-Encoding": "gzip" }],
    ["a deadline", "Stat", json({ path: "/f" }), { ...unaryJson, "Connect-Timeout-Ms": "5000" }],
    ["a stream in JSON", "ExecStream", envelope({ command: "umlauts" }), streamJson],
    ["a stream in protobuf", "ExecStream", envelope(exec("umlauts")), streamProto],
    ["a stream of results", "RunCodeStream", envelope(json({ code: "print(1)" })), streamJson],
    ["names of another client", "ExecStream", envelope({ command: "x", workingDir: "/tmp", env: { A: "1" } }), streamJson],
    ["a stream that fails", "ExecStream", envelope({ command: "lost" }), streamJson],
    ["a stream that does not begin", "ExecStream", envelope({ command: "x", timeoutSeconds: 1e6 }), streamJson],
    ["a stream for nobody", "ReadFile", envelope({ path: "/no" }), streamJson],
    ["a stream of a sandbox that is not there", "ExecStream", envelope(exec("x")), { ...streamProto, "X-Sandbox-Id": "nope" }],
    ["a stream of no message", "ExecStream", Buffer.alloc(0), streamJson],
    ["two messages where there is one", "ExecStream", Buffer.concat([envelope(exec("x")), envelope(exec("x"))]), streamProto],
    ["half a message", "ExecStream", envelope(exec("x")).subarray(0, 6), streamProto],
    ["a message in a stream that is no JSON", "ExecStream", envelope(Buffer.from("{")), streamJson],
    ["a message in a stream that is no protobuf", "ExecStream", envelope(Buffer.from([0xff])), streamProto],
    ["flags that nobody knows", "ExecStream", envelope(exec("x"), 8), streamProto],
    ["a stream of compressed answers", "RunCodeStream", envelope({ code: "1" }), { ...streamJson, "Connect-Accept-Encoding": "gzip" }],
  ])("%s", async (_what, method, body, headers) => {
    at.runtime.files.set("/f", Buffer.from("hi"));
    for (let n = 0; n < 50; n += 1) at.runtime.files.set(`/many/${n}`, Buffer.from("x"));
    const short = await call(at, method, body, headers);
    expect(short).toEqual(await call(at, method, body, { ...headers, ...long }));
  });
});

it.each<[boolean, string, keyof typeof pb.Sandbox.method, Headers]>([
  [true, "a unary call", "stat", { "content-type": "application/json", "content-length": "2" }],
  [true, "a stream of answers", "execStream", { "content-type": "application/connect+json", "content-length": "7" }],
  [false, "gRPC", "stat", { "content-type": "application/grpc", "content-length": "7" }],
  [false, "a stream's type for a unary call", "stat", { "content-type": "application/connect+json", "content-length": "7" }],
  [false, "a length that is not known", "stat", { "content-type": "application/json" }],
  [false, "a large request", "stat", { "content-type": "application/json", "content-length": "1048577" }],
  [false, "a deadline", "stat", { "content-type": "application/json", "content-length": "2", "connect-timeout-ms": "1" }],
  [false, "a stream of requests", "upload", { "content-type": "application/connect+json", "content-length": "7" }],
])("the short way is taken (%s) by %s", (isDirect, _what, method, headers) => {
  expect(directFormat(pb.Sandbox.method[method], { headers } as AnyRequest) !== undefined).toBe(isDirect);
});

describe("on the short way", () => {
  const at = useServer();

  it("a client that leaves ends its program", async () => {
    const leave = new AbortController();
    const body = envelope({ command: "forever" });
    const headers = { ...streamJson, "X-Sandbox-Id": "sb-1" };
    const answer = await fetch(`${at.url}/sandbox.v1.Sandbox/ExecStream`, { method: "POST", body, headers, signal: leave.signal });
    await answer.body!.getReader().read();
    expect(at.runtime.killed).toBe(0);
    leave.abort();
    await expect.poll(() => at.runtime.killed).toBe(1);
  });

  it("a program that has ended is killed by nobody", async () => {
    await call(at, "ExecStream", envelope({ command: "true" }), streamJson);
    expect(at.runtime.killed).toBe(0);
  });
});
