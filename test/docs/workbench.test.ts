import { existsSync } from "node:fs";
import { afterAll, expect, it } from "vitest";
import type { Program } from "./programs.ts";
import { Workbench } from "./workbench.ts";

// Nothing here asks a server.
const workbench = new Workbench("http://127.0.0.1:9");
afterAll(() => workbench.close());

const program = (language: Program["language"], code: string): Program => ({ language, code, line: 1, isServer: false, outputs: [] });

it("programs find no key and no data of whoever runs the tests, and know the server", async () => {
  const said = await workbench.run(
    program("sh", 'echo "$HOME $MITOS_CONFIG_DIR $MITOS_BASE_URL"; ls -A ~; env | grep -c MITOS_API_KEY || true'),
  );
  const [, home] = /^(\S+) \1\/\.config\/mitos http:\/\/127\.0\.0\.1:9\n0\n$/.exec(said) ?? [];
  expect(home).toMatch(/\.cache\/docs\/page-\w+\/home$/);
});

it("imports and programs are those of the checkout", async () => {
  expect(await workbench.run(program("ts", 'import { create } from "@mitos/sdk";\nconsole.log(typeof create, process.version);'))).toBe(
    `function ${process.version}\n`,
  );
  expect(await workbench.run(program("sh", "node --version; ls node_modules/.bin/mitos examples/README.md"))).toBe(
    `${process.version}\nexamples/README.md\nnode_modules/.bin/mitos\n`,
  );
});

it("a program that fails says how, with what it printed", async () => {
  await expect(workbench.run(program("sh", "echo seen; false; echo unseen"))).rejects.toThrow(/^it ended with 1\nseen\n$/);
});

it.each(["--data-dir /var/lib/mitos-of-this-machine", "--data-dir=/var/lib/mitos-of-this-machine"])(
  "no page gets at a data directory of this machine: %s",
  async (flag) => {
    const line = `mitos auth keys create ${flag} --name admin --scopes admin`;
    await expect(workbench.run(program("sh", line))).rejects.toThrow(/it ended with 2[\s\S]*a folder below ~/);
    expect(existsSync("/var/lib/mitos-of-this-machine")).toBe(false);
  },
);

it("a server that cannot start is a failure with its reason", async () => {
  await expect(workbench.run({ ...program("sh", "mitos serve --engine none"), isServer: true })).rejects.toThrow(
    /the server ended with 2[\s\S]*none/,
  );
});
