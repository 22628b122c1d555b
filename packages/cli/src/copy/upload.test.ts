import { spawn } from "node:child_process";
import { once } from "node:events";
import { createServer, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { expect, it } from "vitest";
import { bin } from "../testing.ts";

/** A server with the sandbox `sb`, no file in it, and an upload that is answered as a test says. */
async function startServer(upload: (response: ServerResponse) => void) {
  const server = createServer((request, response) => {
    if (request.method === "PUT") return request.once("data", () => upload(response));
    if (request.url === "/v1/sandboxes/sb") return response.end(JSON.stringify({ id: "sb" }));
    return response.writeHead(404, { "Content-Type": "application/json" }).end(JSON.stringify({ code: "not_found", message: "none" }));
  });
  await once(server.listen(0, "127.0.0.1"), "listening");
  return { server, url: `http://127.0.0.1:${(server.address() as AddressInfo).port}` };
}

it.each([
  ["is refused", 1, (response: ServerResponse) => response.writeHead(507).end("the disk is full")],
  ["is interrupted", 130, () => copying?.kill("SIGINT")],
])("an upload of standard input that %s ends though its input goes on", async (_what, code, upload) => {
  const { server, url } = await startServer(upload);
  copying = spawn(process.execPath, [bin, "cp", "-", "sb:piped"], { env: { MITOS_BASE_URL: url, HOME: "/nonexistent" } });
  try {
    const ended = once(copying, "close");
    copying.stdin?.write("first of many lines\n");
    expect((await ended)[0]).toBe(code);
  } finally {
    copying.kill("SIGKILL");
    server.closeAllConnections();
    server.close();
  }
});

let copying: ReturnType<typeof spawn> | undefined;
