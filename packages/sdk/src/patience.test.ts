import { execFile } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";
import { newDispatcher, patientDispatcher } from "./patience.ts";

/** Answers its headers at once and its body after `silenceMs`. */
async function fetchSilent(silenceMs: number, dispatcher: object | undefined): Promise<string> {
  const server = createServer((_request, response) => {
    response.writeHead(200).flushHeaders();
    setTimeout(() => response.end("late"), silenceMs);
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  try {
    const response = await fetch(`http://127.0.0.1:${(server.address() as AddressInfo).port}`, { dispatcher } as RequestInit);
    return await response.text();
  } finally {
    server.closeAllConnections();
    server.close();
  }
}

describe("on Node", () => {
  it("an answer that is silent for longer than the pool allows fails", async () => {
    await expect(fetchSilent(2500, newDispatcher({ bodyTimeout: 100, headersTimeout: 100 }))).rejects.toThrow();
  });

  it("the patient pool is there for the first request of a process", async () => {
    const program = `import { patientDispatcher } from ${JSON.stringify(import.meta.resolve("./patience.ts"))}; console.log(patientDispatcher() !== undefined);`;
    const { stdout } = await promisify(execFile)(process.execPath, ["--input-type=module", "--eval", program]);
    expect(stdout).toBe("true\n");
  });

  it("the patient pool has no such limit", async () => {
    expect(patientDispatcher()).toBeDefined();
    expect(await fetchSilent(100, patientDispatcher())).toBe("late");
  });
});
