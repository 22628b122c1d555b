import { writeFileSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { startCuttingProxy } from "../support/cutting-proxy.ts";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";
import { binary, type Consumer, makeConsumer, pinnedNode, typeRoot } from "./consumer.ts";
import { seenByTheScenario } from "./expected.ts";

// The SDK as it is published, installed into a project of its own, against the real engine.
let live: LiveServer;
let consumer: Consumer;
beforeAll(async () => {
  [live, consumer] = await Promise.all([startLiveServer(), makeConsumer()]);
});
afterAll(async () => {
  await consumer[Symbol.asyncDispose]();
  await live.close();
});

describe("the declarations are complete and strict", () => {
  const resolutions = [
    { module: "nodenext", moduleResolution: "nodenext" },
    { module: "esnext", moduleResolution: "bundler" },
  ];
  const strict = { strict: true, exactOptionalPropertyTypes: true, noEmit: true, skipLibCheck: false, target: "es2022" };

  it.each(resolutions)("without Node's types, with $moduleResolution", async (resolution) => {
    await checkTypes({ ...strict, ...resolution, lib: ["es2022", "dom", "dom.asynciterable"], types: [] }, ["types.ts"]);
  });

  it.each(resolutions)("with Node's types and every subpath that is bound to no framework, with $moduleResolution", async (resolution) => {
    const specifiers = consumer.specifiers.filter((specifier) => !specifier.includes("/integrations/"));
    const imports = specifiers.map(
      (specifier, index) => `import * as part${index} from ${JSON.stringify(specifier)};\nvoid part${index};\n`,
    );
    writeFileSync(path.join(consumer.dir, "subpaths.ts"), imports.join(""));
    const types = { typeRoots: [typeRoot], types: ["node"] };
    await checkTypes({ ...strict, ...resolution, ...types, lib: ["es2022"] }, ["types.ts", "subpaths.ts"]);
  });
});

it("every subpath loads with no framework installed", async () => {
  const program = `for (const specifier of ${JSON.stringify(consumer.specifiers)}) console.log(specifier, Object.keys(await import(specifier)).length > 0);`;
  const output = await consumer.run(pinnedNode, ["--input-type=module", "--eval", program]);
  expect(output).toBe(consumer.specifiers.map((specifier) => `${specifier} true\n`).join(""));
});

const runtimes: Record<string, (server: string) => [program: string, ...args: string[]]> = {
  Node: () => [pinnedNode],
  // Which may use the network and read the SDK's variables, and nothing more.
  Deno: (server) => [
    binary("deno"),
    ...["run", "--no-prompt", "--no-lock", "--node-modules-dir=manual"],
    ...[`--allow-net=${new URL(server).host}`, "--allow-env=MITOS_API_KEY,MITOS_BASE_URL"],
  ],
  Bun: () => [binary("bun"), "run"],
};

describe.each(Object.keys(runtimes))("under %s", (runtime) => {
  const run = async (file: string, server: string) => {
    const [program, ...args] = runtimes[runtime]!(server);
    return JSON.parse(await consumer.run(program, [...args, file], { MITOS_BASE_URL: server }));
  };

  it("the scenario is what it is everywhere", async () => {
    expect(await run("main.js", live.url)).toEqual(seenByTheScenario);
  });

  it("a terminal and a process go on over connections that are cut, with no byte lost or doubled", async () => {
    await using proxy = await startCuttingProxy(live.url, 60_000);
    expect(await run("reconnect.js", proxy.url)).toEqual({
      terminal: { exitCode: 7, same: true, offset: true },
      background: { exitCode: 3, called: true, result: true, iterated: true },
    });
    expect(proxy.cuts).toBeGreaterThan(3);
  });
});

async function checkTypes(compilerOptions: object, files: readonly string[]): Promise<void> {
  writeFileSync(path.join(consumer.dir, "tsconfig.json"), JSON.stringify({ compilerOptions, files }));
  expect(await consumer.run(pinnedNode, [binary("tsc"), "-p", "."])).toBe("");
}
