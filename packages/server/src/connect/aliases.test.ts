import { describe, expect, it } from "vitest";
import { envelope } from "../testing/harness.ts";
import { withExecAliases } from "./aliases.ts";
import { wholeMessages } from "./whole-messages.ts";

async function read(body: Buffer, chunkBytes: number): Promise<Buffer> {
  const source = (async function* () {
    for (let at = 0; at < body.length; at += chunkBytes) yield body.subarray(at, at + chunkBytes);
  })();
  const out: Uint8Array[] = [];
  for await (const chunk of withExecAliases(wholeMessages(source))) out.push(chunk);
  return Buffer.concat(out);
}

describe("aliases in an ExecStream request", () => {
  const aliased = envelope({ command: "x", workingDir: "/tmp", env: { A: "1" } });
  const plain = envelope({ command: "x", env: [{ key: "A", value: "1" }], cwd: "/tmp" });

  it.each([1, 3, 1000])("are renamed when the body arrives in chunks of %i", async (size) => {
    const renamed = await read(aliased, size);
    expect(JSON.parse(renamed.subarray(5).toString())).toEqual({ command: "x", cwd: "/tmp", env: [{ key: "A", value: "1" }] });
    expect(renamed.readUInt32BE(1)).toBe(renamed.length - 5);
  });

  it.each([
    ["a request without them", plain],
    ["two messages", Buffer.concat([plain, plain])],
    ["a compressed message", envelope({ workingDir: "/tmp" }, 1)],
    ["what is not JSON", envelope("{workingDir")],
    ["what is not an object", envelope([1])],
    ["a length that is a lie", Buffer.from([0, 255, 255, 255, 255, 1, 2])],
    ["half an envelope", plain.subarray(0, 9)],
    ["nothing", Buffer.alloc(0)],
  ])("leave %s as it is", async (_, body) => {
    expect((await read(body, 4)).equals(body)).toBe(true);
  });
});
