import { createHash } from "node:crypto";
import { once } from "node:events";
import { request as httpRequest } from "node:http";
import { connect } from "node:net";
import { limits } from "@mitos/protocol";
import { describe, expect, it } from "vitest";
import { get, post, send, useServer } from "../testing/harness.ts";

const at = useServer();
const tar = Buffer.alloc(1536, 1);
const digestOf = (data: Uint8Array) => `sha256:${createHash("sha256").update(data).digest("hex")}`;
const path = `/v1/contexts/${digestOf(tar)}`;

describe("a context of a build", () => {
  it("is there once it was sent, and then a step can copy it", async () => {
    expect(await send(at, "HEAD", path)).toMatchObject({ status: 404, text: "" });
    expect((await get(at, path)).json.error).toMatchObject({ code: "not_found", remediation: expect.stringContaining(`PUT ${path}`) });
    expect(await send(at, "PUT", path, tar)).toMatchObject({ status: 200, json: { digest: digestOf(tar), bytes: tar.length } });
    expect(await send(at, "HEAD", path)).toMatchObject({ status: 200, text: "" });
    expect(at.engine.contexts.get(digestOf(tar))).toEqual(tar);
    const copy = { type: "copy", source: "src/", dest: "/app", context: digestOf(tar) };
    expect((await post(at, "/v1/templates", { id: "app", image: "python:3.12", build_steps: [copy] })).status).toBe(200);
  });

  it.each(["sha256:0a", digestOf(tar).toUpperCase(), digestOf(tar).slice(7), `md5:${"0a".repeat(16)}`, "%2e%2e%2fx"])(
    "has a digest, which %s is not",
    async (digest) => {
      for (const method of ["HEAD", "GET", "PUT"] as const) {
        expect((await send(at, method, `/v1/contexts/${digest}`, method === "PUT" ? "x" : undefined)).status).toBe(400);
      }
    },
  );

  it("is refused by its length before a byte of it is taken", async () => {
    const socket = connect(Number(new URL(at.url).port), "127.0.0.1");
    socket.write(`PUT ${path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: ${limits.contextBytesMax + 1}\r\n\r\n`);
    const [answer] = await once(socket, "data");
    expect(String(answer)).toMatch(/^HTTP\/1\.1 413 .*"code":"body_too_large"/s);
    socket.destroy();
  });

  it("is taken as fast as it can be stored, so that its size does not matter", async () => {
    const gate = Promise.withResolvers<void>();
    let taken = 0;
    at.engine.putContext = async (_digest, chunks) => {
      for await (const chunk of chunks) {
        taken += chunk.length;
        await gate.promise;
      }
    };
    const upload = httpRequest(`${at.url}${path}`, { method: "PUT", agent: false });
    const chunk = Buffer.alloc(1024 * 1024);
    let sent = 0;
    while (sent < 64 && upload.write(chunk)) sent += 1;
    // What the sockets hold is sent; the rest waits in the client.
    await expect.poll(() => taken).toBeGreaterThan(0);
    expect(taken).toBeLessThanOrEqual(64 * 1024);
    gate.resolve();
    for (; sent < 64; sent += 1) if (!upload.write(chunk)) await once(upload, "drain");
    upload.end();
    const [response] = await once(upload, "response");
    expect(response.statusCode).toBe(200);
    response.resume();
    await once(response, "end");
    expect(taken).toBeGreaterThanOrEqual(64 * chunk.length);
  });

  it("whose client leaves half-way is given up", async () => {
    const failed = Promise.withResolvers<unknown>();
    at.engine.putContext = async (_digest, chunks) => {
      try {
        for await (const _ of chunks);
        failed.reject(new Error("it was taken for whole"));
      } catch (error) {
        failed.resolve(error);
        throw error;
      }
    };
    const socket = connect(Number(new URL(at.url).port), "127.0.0.1");
    socket.write(`PUT ${path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n`);
    socket.write("x".repeat(1000), () => socket.destroy());
    await expect(failed.promise).resolves.toBeInstanceOf(Error);
  });
});
