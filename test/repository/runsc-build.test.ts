import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { expect, it } from "vitest";
import { CommandFolder } from "./command-folder.ts";

const root = path.resolve(import.meta.dirname, "../..");
const { buildRunsc } = await import(path.join(root, "scripts/lib/runsc-build.mjs"));

const folder = new CommandFolder("runsc-build-");

const goThat = (work: string) => folder.put("go", { versionFlag: "version", version: "go version go1.26.8 linux/amd64", work });

/** Returns why there is none. */
function build(longestMs: number): Promise<string> {
  return buildRunsc(folder.file("built/runsc"), { longestMs });
}

it("a build of runsc that takes too long is ended, and not tried again", async () => {
  const asked = goThat("exec sleep 1000");
  expect(await build(1_000)).toMatch(/was not done in/);
  expect(await build(1_000)).toMatch(/took too long here before; to try again, remove .*built\/runsc\.given-up/);
  expect(asked()).toEqual(["mod vendor"]);
});

it("another release is tried in spite of that", async () => {
  const asked = goThat("exec sleep 1000");
  await build(1_000);
  writeFileSync(folder.file("built/runsc.given-up"), "an earlier one");
  expect(await build(1_000)).toMatch(/was not done in/);
  expect(asked()).toHaveLength(2);
});

it("a build of runsc that fails says why, is tried again, and leaves nothing", async () => {
  const asked = goThat('echo "$GOTMPDIR" > "$0.temporary"; touch "$GOTMPDIR/left" && echo proxy.example: no such host >&2; exit 1');
  expect(await build(60_000)).toMatch(/failed \(.*no such host\)/);
  expect(await build(60_000)).toMatch(/failed/);
  expect(asked()).toHaveLength(2);
  expect(existsSync(folder.file("built"))).toBe(false);
  expect(existsSync(readFileSync(folder.file("go.temporary"), "utf8").trim())).toBe(false);
  expect(readdirSync(path.join(root, ".cache")).filter((name) => name.startsWith("runsc-build-"))).toEqual([]);
});
