/**
 * Whatever a client sends, it gets a well-formed refusal or a success: never `internal`, never silence, and the server lives.
 * MITOS_FUZZ_ROUNDS raises the rounds, MITOS_TEST_SEED repeats a run.
 */

import { connect } from "node:net";
import { gzipSync } from "node:zlib";
import { create, type DescMessage, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { sandbox as pb } from "@mitos/protocol/proto";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { WebSocket } from "ws";
import { get, post, useServer } from "../testing/harness.ts";
import { seededDice } from "../testing/seeded-random.ts";

const rounds = Number(process.env.MITOS_FUZZ_ROUNDS ?? 150);
const answerMs = 10_000;

const dice = seededDice();
const at = useServer({ bodySilenceMs: 200 });
const outOfBand: unknown[] = [];
const note = (error: unknown): void => void outOfBand.push(error);

beforeEach(() => {
  process.on("unhandledRejection", note);
  at.runtime.files.set("/f", Buffer.from("content of the file"));
});
afterEach(async () => {
  process.off("unhandledRejection", note);
  expect(outOfBand).toEqual([]);
  expect((await get(at, "/healthz")).status).toBe(200);
  expect(
    at.logLines.filter((line) => /failed/.test(line) && !/HTTP\/2 session/.test(line)),
    `seed ${dice.seed}`,
  ).toEqual([]);
});

interface RawRequest {
  readonly method: string;
  readonly target: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body?: Uint8Array;
}

/** Header values as they are: Node's own client would refuse to send most of them. */
function bytesOf({ method, target, headers, body = Buffer.alloc(0) }: RawRequest): Buffer {
  const all = { Host: new URL(at.url).host, Connection: "close", "Content-Length": String(body.length), ...headers };
  const lines = [`${method} ${target} HTTP/1.1`, ...Object.entries(all).map(([name, value]) => `${name}: ${value}`)];
  return Buffer.concat([Buffer.from(`${lines.join("\r\n")}\r\n\r\n`, "latin1"), body]);
}

function exchange(bytes: Uint8Array): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect(Number(new URL(at.url).port), "127.0.0.1");
    const chunks: Buffer[] = [];
    const timer = setTimeout(() => {
      socket.destroy();
      reject(new Error(`no end of an answer to ${Buffer.from(bytes).toString("latin1").slice(0, 2_000)}`));
    }, answerMs);
    socket.on("data", (chunk) => chunks.push(chunk));
    socket.on("error", () => {}); // "close" follows
    socket.on("close", () => {
      clearTimeout(timer);
      resolve(Buffer.concat(chunks).toString("latin1"));
    });
    socket.write(bytes);
  });
}

async function expectProper(request: RawRequest): Promise<void> {
  const bytes = bytesOf(request);
  const answer = await exchange(bytes);
  const what = `seed ${dice.seed}: ${bytes.toString("latin1").slice(0, 1_000)}\n-> ${answer.slice(0, 1_000)}`;
  const final = answer.replace(/^HTTP\/1\.1 100 Continue\r\n\r\n/, "");
  const [, status = ""] = /^HTTP\/1\.1 (\d{3}) /.exec(final) ?? [];
  expect(status, what).toMatch(/^[2345]\d\d$/);
  expect(status, what).not.toBe("500");
  // `internal` is what the protocol demands for a compressed message without a word about how.
  expect(final.replace(/"code":"internal","message":"received compressed/, ""), what).not.toMatch(/"code":"(internal|unknown)"/);
  const body = final.slice(final.indexOf("\r\n\r\n") + 4);
  if (/^content-type: application\/json\r$/im.test(final) && !/^transfer-encoding/im.test(final) && body && request.method !== "HEAD") {
    expect(() => JSON.parse(body), what).not.toThrow();
  }
}

async function fuzz(request: () => RawRequest): Promise<void> {
  for (let round = 0; round < rounds; round += 1) await expectProper(request());
}

function framed(payload: Uint8Array, flags = 0, length = payload.length): Buffer {
  const head = Buffer.alloc(5);
  head[0] = flags;
  head.writeUInt32BE(length >>> 0, 1);
  return Buffer.concat([head, payload]);
}

type Rpc = readonly [name: string, schema: DescMessage, json: object];
const unaryRpcs: readonly Rpc[] = [
  ["List", pb.ListRequestSchema, { parent: "/" }],
  ["Stat", pb.StatRequestSchema, { path: "/f" }],
  ["Mkdir", pb.MkdirRequestSchema, { path: "/d" }],
  ["Remove", pb.RemoveRequestSchema, { path: "/d" }],
  ["Processes", pb.ProcessesRequestSchema, {}],
  ["Signal", pb.SignalRequestSchema, { pid: 42, signal: 9 }],
];
const streamRpcs: readonly Rpc[] = [
  ["ExecStream", pb.ExecStreamRequestSchema, { command: "x", cwd: "/", env: [{ key: "A", value: "1" }], timeoutSeconds: 3 }],
  ["RunCodeStream", pb.RunCodeStreamRequestSchema, { code: "1", language: "python", timeoutSeconds: 3 }],
  ["ReadFile", pb.ReadFileRequestSchema, { path: "/f" }],
  ["WriteFile", pb.WriteFileRequestSchema, { open: { path: "/g", mode: 420 } }],
  ["Upload", pb.UploadRequestSchema, { open: { dest: "/d" } }],
  ["Archive", pb.ArchiveRequestSchema, { path: "/", direction: "DOWNLOAD" }],
];

function messageOf([, schema, json]: Rpc, isProto: boolean): Buffer {
  if (!isProto) return Buffer.from(JSON.stringify(json));
  const { open, direction, ...rest } = json as { open?: object; direction?: string };
  const value = { ...rest, ...(direction ? { direction: 1 } : {}), ...(open ? { msg: { case: "open", value: open } } : {}) };
  return Buffer.from(toBinary(schema, create(schema, value as MessageInitShape<DescMessage>)));
}

describe("bad input on the Connect routes", () => {
  it("in bodies of unary calls is answered properly (fuzz smoke)", async () => {
    await fuzz(() => {
      const rpc = dice.pick(unaryRpcs);
      const isProto = dice.below(2) === 0;
      const good = messageOf(rpc, isProto);
      return {
        method: "POST",
        target: `/sandbox.v1.Sandbox/${rpc[0]}`,
        headers: {
          "Content-Type": isProto ? "application/proto" : "application/json",
          "X-Sandbox-Id": "sb-1",
          ...(dice.below(8) === 0 ? { "Content-Encoding": dice.pick(["gzip", "br", "\u00ff", "identity"]) } : {}),
          ...(dice.below(8) === 0 ? { "Connect-Timeout-Ms": dice.pick(["-1", "1e9", "99999999999", "x", "0"]) } : {}),
        },
        body: dice.below(6) === 0 ? good : dice.mutate(dice.below(6) === 0 ? gzipSync(good) : good),
      };
    });
  });

  it("in envelopes of streams is answered properly (fuzz smoke)", async () => {
    await fuzz(() => {
      const rpc = dice.pick(streamRpcs);
      const isProto = dice.below(2) === 0;
      const good = messageOf(rpc, isProto);
      const message = dice.below(3) === 0 ? good : dice.mutate(good);
      const shapes = [
        () => framed(message),
        () => framed(message, dice.below(256)),
        () => framed(message, 0, message.length + dice.pick([1, -1, 5, 0x7fff_ffff, 0xffff_ffff])),
        () => framed(gzipSync(message), 1),
        () => framed(dice.mutate(gzipSync(message)), 1),
        () => framed(message).subarray(0, dice.below(message.length + 5)),
        () => Buffer.concat([framed(good), dice.mutate(framed(message))]),
        () => dice.mutate(framed(message)),
        () => Buffer.alloc(0),
      ];
      return {
        method: "POST",
        target: `/sandbox.v1.Sandbox/${rpc[0]}`,
        headers: {
          "Content-Type": isProto ? "application/connect+proto" : "application/connect+json",
          "X-Sandbox-Id": "sb-1",
          ...(dice.below(3) === 0 ? { "Connect-Content-Encoding": dice.pick(["gzip", "br", "identity"]) } : {}),
        },
        body: dice.pick(shapes)(),
      };
    });
  });
});

const jsonRoutes: readonly (readonly [method: string, target: string, body: object])[] = [
  ["POST", "/v1/templates", { id: "t", env: { A: "1" }, resources: { memory_mib: 128 } }],
  [
    "POST",
    "/v1/templates",
    {
      id: "b",
      image: "python:3.12",
      build_steps: [
        { type: "run", run: "x" },
        { type: "env", env_name: "A", env_value: "1" },
        { type: "copy", source: "a", dest: "/b", context: `sha256:${"0a".repeat(32)}` },
      ],
      warm: { language: "python", code: "1" },
      workload: { entrypoint: true, ready: { kind: "port", port: 80 } },
    },
  ],
  ["POST", "/v1/templates/python/push", { reference: "registry.example/team/tool:1" }],
  ["POST", "/v1/images", { reference: "python:3.12", pull: true }],
  ["POST", "/v1/prune", { older_than_seconds: 60 }],
  ["POST", "/v1/fork", { template: "python", id: "sb-2", env: { A: "1" }, timeout: 60 }],
  ["POST", "/v1/sandboxes/sb-1/fork", { count: 1 }],
  ["POST", "/v1/set_timeout", { sandbox: "sb-1", timeout: 60 }],
  ["POST", "/v1/exec", { sandbox: "sb-1", command: "x", env: { A: "1" }, timeout: 3 }],
  ["POST", "/v1/exec/stream", { sandbox: "sb-1", command: "x", working_dir: "/" }],
  ["POST", "/v1/run_code/stream", { sandbox: "sb-1", code: "1", language: "python", timeout: 3 }],
  ["POST", "/v1/files/read", { sandbox: "sb-1", path: "/f", binary: true }],
  ["POST", "/v1/files/write", { sandbox: "sb-1", path: "/g", content: "6162", mode: 420, binary: true }],
  ["POST", "/v1/files/list", { sandbox: "sb-1", path: "/" }],
  ["POST", "/v1/preview", { sandbox: "sb-1", port: 8080, ttl: 60 }],
  ["POST", "/v1/sandboxes/sb-1/contexts", { language: "python", cwd: "/" }],
  ["POST", "/v1/sandboxes/sb-1/files/rename", { from: "/f", to: "/g" }],
  ["POST", "/v1/sandboxes/sb-1/processes", { args: ["x"], env: { A: "1" }, pty: { cols: 80, rows: 24 } }],
  ["POST", "/v1/sandboxes/sb-1/processes/42/stdin", { data: "aGk=", close: true }],
  ["POST", "/v1/sandboxes/sb-1/processes/42/signal", { signal: 9, group: true }],
  ["POST", "/v1/sandboxes/sb-1/processes/42/resize", { cols: 80, rows: 24 }],
];

const jsonHeaders = (): Record<string, string> => ({
  "Content-Type": "application/json",
  ...(dice.below(3) === 0 ? { Accept: "application/x-ndjson" } : {}),
});

describe("bad input on the JSON routes", () => {
  it("in bodies is answered properly (fuzz smoke)", async () => {
    await fuzz(() => {
      const [method, target, body] = dice.pick(jsonRoutes);
      return { method, target, headers: jsonHeaders(), body: dice.mutate(Buffer.from(JSON.stringify(body))) };
    });
  });

  it("in values that are JSON, and of the wrong kind, is answered properly (fuzz smoke)", async () => {
    const odd: unknown[] = [
      null,
      -1,
      1e308,
      0.5,
      "",
      "\0",
      "x".repeat(70_000),
      [],
      {},
      [[[]]],
      true,
      { __proto__: null, a: 1 },
      ["\ud800"],
      2 ** 53,
      "__proto__",
    ];
    await fuzz(() => {
      const [method, target, body] = dice.pick(jsonRoutes);
      const changed = Object.fromEntries(Object.entries(body).map(([key, value]) => [key, dice.below(2) === 0 ? dice.pick(odd) : value]));
      return {
        method,
        target,
        headers: { ...jsonHeaders(), "Content-Type": dice.pick(["application/json", "text/plain", "x"]) },
        body: Buffer.from(JSON.stringify(changed)),
      };
    });
  });
});

describe("bad input in the head of a request", () => {
  const targets = [
    "/v1/sandboxes/sb-1/files?path=/f",
    "/v1/sandboxes/sb-1/processes/42/output?stdout_from=0&stderr_from=0",
    "/v1/sandboxes/sb-1/processes/42/output?stdout_from=3",
    "/v1/sandboxes/sb-1/contexts",
    "/v1/sandboxes/sb-1",
    "/v1/sandboxes?state=running&metadata=a",
    "/v1/templates",
    "/v1/templates/registry.example%2Fteam%2Ftool%3A1/events?follow=true",
    "/v1/names/team%2Ftool%3A1",
    `/v1/contexts/sha256:${"0a".repeat(32)}`,
    "/v1/usage/disk",
    "/v1/preview/p8080-sb-1/a?token=x.y",
    "/v1/sandboxes/sb-1/ports/8080/a",
    "/sandbox.v1.Sandbox/Stat",
    "/v1/pty?sandbox=sb-1&cols=80&rows=24",
  ];

  it("in paths and queries is answered properly (fuzz smoke)", async () => {
    await fuzz(() => {
      // A request line ends at a blank or a line break: what stands behind would be another one's.
      const target = dice
        .mutate(Buffer.from(dice.pick(targets)))
        .toString("latin1")
        .replace(/[\r\n ]/g, "_");
      return { method: dice.pick(["GET", "HEAD", "DELETE", "POST"]), target: target || "/", headers: {} };
    });
  });

  it("in headers is answered properly (fuzz smoke)", async () => {
    const samples: Readonly<Record<string, string>> = {
      Authorization: "Bearer mitos_abcdefghijklmnop_0123456789",
      Cookie: "a=b; mitos_preview=eyJzIjoic2ItMSIsInAiOjgwODB9.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
      "Mitos-Preview-Token": "eyJzIjoic2ItMSIsInAiOjgwODB9.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
      Range: "bytes=0-5",
      traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
      tracestate: "a=1,b=2",
      "Idempotency-Key": "one",
      "X-Sandbox-Id": "sb-1",
      "Connect-Timeout-Ms": "1000",
      "Connect-Protocol-Version": "1",
      "Content-Type": "application/json",
      Host: "p8080-sb-1.localhost",
      Origin: "http://localhost",
      Expect: "100-continue",
      "Transfer-Encoding": "chunked",
    };
    await fuzz(() => {
      const headers = Object.fromEntries(
        Array.from({ length: 1 + dice.below(3) }, () => {
          const [name, value] = dice.pick(Object.entries(samples));
          return [
            name,
            dice.below(4) === 0
              ? value
              : dice
                  .mutate(Buffer.from(value))
                  .toString("latin1")
                  .replace(/[\r\n]/g, "_"),
          ];
        }),
      );
      const [method, target] = dice.pick([
        ["GET", dice.pick(targets)],
        ["POST", "/v1/fork"],
        ["POST", "/sandbox.v1.Sandbox/Stat"],
      ] as const);
      return { method, target, headers };
    });
  });
});

describe("bad messages on a WebSocket", () => {
  const good = {
    "/sandbox.v1.Sandbox/Exec": [{ open: { command: "cat" } }, { stdin: "aGk=" }, { resize: { cols: 80, rows: 24 } }, { stdinClose: true }],
    "/v1/pty": [{ kind: "input", data: "aGk=" }, { kind: "resize", cols: 80, rows: 24 }, { kind: "close" }],
  };

  it.each(Object.keys(good) as (keyof typeof good)[])("of %s end the session or are ignored (fuzz smoke)", async (path) => {
    for (let round = 0; round < rounds / 3; round += 1) {
      const socket = new WebSocket(`${at.url.replace("http", "ws")}${path}?sandbox=sb-1`);
      const closed = new Promise<number>((resolve) => socket.on("close", resolve));
      socket.on("error", () => {});
      await new Promise((resolve) => socket.on("open", resolve));
      for (let index = 0; index < 4; index += 1) {
        const payload = Buffer.from(JSON.stringify(good[path][index % good[path].length]));
        const whole = path === "/v1/pty" ? payload : framed(payload);
        const message = dice.below(2) === 0 ? whole : dice.mutate(whole);
        socket.send(message, { binary: dice.below(4) === 0 ? path === "/v1/pty" : path !== "/v1/pty" });
      }
      if (path === "/v1/pty") socket.send(JSON.stringify({ kind: "input", data: Buffer.from("exit\n").toString("base64") }));
      const timer = setTimeout(() => socket.close(), 300);
      const code = await closed;
      clearTimeout(timer);
      expect([1000, 1003, 1005, 1006, 1007, 1009, 1011], `seed ${dice.seed}`).toContain(code);
    }
    expect((await post(at, "/v1/exec", { sandbox: "sb-1", command: "x" })).status).toBe(200);
  });
});
