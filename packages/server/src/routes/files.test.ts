import { connect } from "node:net";
import { describe, expect, it } from "vitest";
import { get, post, send, useServer } from "../testing/harness.ts";

describe("raw files", () => {
  const at = useServer();
  const url = (path: string, more = "") => `/v1/sandboxes/sb-1/files?path=${encodeURIComponent(path)}${more}`;

  it("are written and read byte for byte", async () => {
    const data = Buffer.alloc(3_000_000, "0123456789abcdef\0\xff", "latin1");
    expect((await send(at, "PUT", url("/ä b"), data)).json).toEqual({ bytes_written: 3_000_000 });
    const read = await fetch(`${at.url}${url("/ä b")}`, { headers: { Connection: "close" } });
    expect(read.headers.get("content-type")).toBe("application/octet-stream");
    expect(read.headers.get("content-length")).toBe("3000000");
    expect(Buffer.from(await read.arrayBuffer()).equals(data)).toBe(true);
  });

  it("are written with the mode asked for, 644 otherwise", async () => {
    await send(at, "PUT", url("/a", "&mode=0755"), "x");
    await send(at, "PUT", url("/a"), "");
    expect(at.runtime.signals).toEqual([
      ["mode", 0o755],
      ["mode", 0o644],
    ]);
    expect((await send(at, "PUT", url("/a", "&mode=999"), "x")).json.error.code).toBe("invalid_input");
  });

  it.each([
    ["bytes=2-4", 206, "cde", "bytes 2-4/10"],
    ["bytes=7-", 206, "hij", "bytes 7-9/10"],
    ["bytes=-2", 206, "ij", "bytes 8-9/10"],
    ["bytes=5-500", 206, "fghij", "bytes 5-9/10"],
    ["bytes=0-0", 206, "a", "bytes 0-0/10"],
    ["bytes=-500", 206, "abcdefghij", "bytes 0-9/10"],
    ["bytes=0-1,3-4", 200, "abcdefghij", undefined],
    ["bytes=4-2", 200, "abcdefghij", undefined],
    ["lines=1-2", 200, "abcdefghij", undefined],
  ])("answer Range: %s with %i", async (range, status, body, contentRange) => {
    at.runtime.files.set("/f", Buffer.from("abcdefghij"));
    const answer = await get(at, url("/f"), { Range: range });
    expect([answer.status, answer.text, answer.headers["content-range"]]).toEqual([status, body, contentRange]);
  });

  it.each(["bytes=10-", "bytes=10-20", "bytes=-0"])("answer Range: %s, behind the end, with 416 and the size", async (range) => {
    at.runtime.files.set("/f", Buffer.from("abcdefghij"));
    const answer = await get(at, url("/f"), { Range: range });
    expect([answer.status, answer.headers["content-range"]]).toEqual([416, "bytes */10"]);
  });

  it("answer HEAD with the size, and what is missing or malformed with an error", async () => {
    at.runtime.files.set("/f", Buffer.from("abc"));
    const head = await send(at, "HEAD", url("/f"));
    expect([head.status, head.headers["content-length"], head.text]).toEqual([200, "3", ""]);
    expect((await get(at, url("/none"))).json.error.code).toBe("not_found");
    for (const path of ["", "a\0b"]) expect((await get(at, url(path))).status).toBe(400);
    expect((await get(at, "/v1/sandboxes/sb-1/files")).status).toBe(400);
  });

  it("answer a failed write while the client is still sending, and keep the connection", async () => {
    const socket = connect(Number(new URL(at.url).port), "127.0.0.1");
    let seen = "";
    socket.on("data", (data) => {
      seen += data;
    });
    socket.write(`PUT ${url("/denied/x")} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n0123456789`);
    await expect.poll(() => seen).toMatch(/^HTTP\/1.1 500.*file_failed/s);
    seen = "";
    socket.write(`${"x".repeat(90)}GET /v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n`);
    await expect.poll(() => seen).toMatch(/^HTTP\/1.1 200/);
    socket.destroy();
  });

  it("hold up the side that is faster, so that the size of a file does not matter", async () => {
    const standsStill = (figure: () => number) => {
      let last = -1;
      return expect
        .poll(
          () => {
            const still = figure() > 0 && figure() === last;
            last = figure();
            return still;
          },
          { interval: 150, timeout: 5000 },
        )
        .toBe(true);
    };
    const port = Number(new URL(at.url).port);
    const reader = connect(port, "127.0.0.1").pause();
    reader.write(`GET ${url("/endless")} HTTP/1.1\r\nHost: localhost\r\n\r\n`);
    await standsStill(() => at.runtime.floodBytes);
    expect(at.runtime.floodBytes).toBeLessThan(32 * 1024 * 1024);
    reader.destroy();

    const writer = connect(port, "127.0.0.1").on("error", () => {});
    writer.write(`PUT ${url("/slow")} HTTP/1.1\r\nHost: localhost\r\nContent-Length: ${1024 ** 3}\r\n\r\n`);
    writer.write(Buffer.alloc(64 * 1024 * 1024));
    const taken = () => writer.bytesWritten - writer.writableLength;
    await standsStill(taken);
    expect(taken()).toBeLessThan(32 * 1024 * 1024);
    writer.destroy();
    at.runtime.gate.resolve();
  });

  it("are renamed, when both paths are ones", async () => {
    const rename = (body: unknown) => post(at, "/v1/sandboxes/sb-1/files/rename", body);
    at.runtime.files.set("/f", Buffer.from("x"));
    expect((await rename({ from: "/f", to: "/g" })).json).toEqual({ status: "renamed" });
    expect([...at.runtime.files.keys()]).toEqual(["/g"]);
    expect(await rename({ from: "/f", to: "/g" })).toMatchObject({ status: 404, json: { error: { code: "not_found" } } });
    for (const body of [{}, { from: "/g" }, { from: "/g", to: "" }, { from: "a\0b", to: "/g" }, { from: "/g", to: "x".repeat(5000) }]) {
      expect(await rename(body)).toMatchObject({ status: 400, json: { error: { code: "invalid_input" } } });
    }
    expect([...at.runtime.files.keys()]).toEqual(["/g"]);
  });

  it("of a sandbox that is not running are refused with 409", async () => {
    await post(at, "/v1/pause", { sandbox: "sb-1" });
    expect((await get(at, url("/f"))).json.error).toMatchObject({ code: "sandbox_not_running" });
    expect((await send(at, "PUT", url("/f"), "x")).status).toBe(409);
  });
});
