import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { Agent, get, type IncomingMessage } from "node:http";
import os from "node:os";
import path from "node:path";
import { pathToFileURL } from "node:url";
import { SandboxServer } from "@mitos/sdk";
import { afterAll, describe, expect, it } from "vitest";
import { firstLine, start } from "../testing.ts";

const dir = mkdtempSync(path.join(os.tmpdir(), "mitos-serve-"));
afterAll(() => rmSync(dir, { recursive: true }));

/** In the server's process: signals stand in for defects of its code. */
const defects = path.join(dir, "defects.mjs");
writeFileSync(
  defects,
  `let next = 0;
  const reasons = [new Error("nobody waited"), { token: "what-nobody-may-see" }];
  process.on("SIGUSR2", () => void Promise.reject(reasons[next++]));
  process.on("SIGURG", () => { throw new Error("nobody caught this"); });`,
);

async function serve(...args: readonly string[]) {
  const all = ["serve", "--engine", "mock", "--addr", "127.0.0.1:0", "--data-dir", path.join(dir, "data"), ...args];
  const server = start(all, { HOME: dir, NODE_OPTIONS: `--import=${pathToFileURL(defects)}` });
  const url = (await firstLine(server)).replace("Mitos listens on ", "");
  return { ...server, url, api: new SandboxServer(url) };
}

const loggedErrors = (text: string) =>
  text
    .split("\n")
    .flatMap((line) => (line.startsWith("{") ? [JSON.parse(line)] : []))
    .filter(({ level }) => level === "error");

describe("a server with a defect", () => {
  it("goes on when a promise fails that nobody waits for, with its connections, and says and counts it", async () => {
    await using server = closing(await serve());
    const agent = new Agent({ keepAlive: true, maxSockets: 1 });
    const ask = (route: string) =>
      new Promise<{ text: string; isSameConnection: boolean }>((resolve, reject) => {
        const request = get(`${server.url}${route}`, { agent }, async (response: IncomingMessage) => {
          const text = Buffer.concat(await response.toArray()).toString();
          resolve({ text, isSameConnection: request.reusedSocket });
        }).on("error", reject);
      });
    expect((await ask("/metrics")).text).toContain("\nmitos_unhandled_rejections_total 0\n");

    for (const count of [1, 2]) {
      server.child.kill("SIGUSR2");
      await expect.poll(() => loggedErrors(server.seen.err)).toHaveLength(count);
      const { text, isSameConnection } = await ask("/metrics");
      expect([isSameConnection, text]).toEqual([true, expect.stringContaining(`\nmitos_unhandled_rejections_total ${count}\n`)]);
    }
    const [first, second] = loggedErrors(server.seen.err);
    expect(first).toMatchObject({ err: { message: "nobody waited", stack: expect.stringContaining("defects.mjs") } });
    expect(second).toMatchObject({ err: { message: expect.stringContaining("object") } });
    expect(server.seen.err).not.toContain("what-nobody-may-see");
    agent.destroy();
  });

  it("ends in order with exit code 1 when nobody catches an error, and the next one has its sandboxes", async () => {
    const broken = await serve();
    await broken.api.createTemplate("kept");
    await broken.api.fork("kept", "survivor");
    broken.child.kill("SIGURG");
    const { code, err } = await broken.ended;
    expect([code, loggedErrors(err)]).toEqual([
      1,
      [expect.objectContaining({ err: expect.objectContaining({ message: "nobody caught this" }) })],
    ]);
    expect(err).toContain("stopping; sandboxes run on\n");
    expect(err).toMatch(/^error: .+\ncause: .+\nnext step: .+\n$/m);

    await using next = closing(await serve());
    expect((await next.api.listSandboxes()).map(({ id }) => id)).toEqual(["survivor"]);
  });
});

function closing<Server extends Awaited<ReturnType<typeof serve>>>(server: Server): Server & AsyncDisposable {
  return Object.assign(server, {
    async [Symbol.asyncDispose]() {
      server.child.kill("SIGTERM");
      expect((await server.ended).code).toBe(0);
    },
  });
}
