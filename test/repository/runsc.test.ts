import { mkdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import { expect, it } from "vitest";
import { CommandFolder } from "./command-folder.ts";

const { ensureBaselineRunsc } = await import(path.resolve(import.meta.dirname, "../../scripts/lib/runsc.mjs"));

const folder = new CommandFolder("runsc-");

const aptGetThat = (work: string) => folder.put("apt-get", { versionFlag: "--version", version: "apt 2.6.1", work });

/** Returns the note. */
function baseline(signal?: AbortSignal): Promise<string> {
  return ensureBaselineRunsc({ folder: folder.file("unpacked"), signal });
}

function putUnpacked(version: string): void {
  mkdirSync(folder.file("unpacked/usr/bin"), { recursive: true });
  writeFileSync(folder.file("unpacked/usr/bin/runsc"), `#!/bin/sh\necho runsc version ${version}\n`, { mode: 0o755 });
}

it("set-up goes on where the distribution has no runsc for the bench's baseline, and says so", async () => {
  aptGetThat("exit 100");
  expect(await baseline()).toMatch(/^none: no package of runsc was found for .*; the bench judges by the runsc that Mitos uses$/);
});

it("the distribution's runsc is fetched once, also when it is too old", async () => {
  const asked = aptGetThat("exit 100");
  putUnpacked("0.0~20231113.0");
  expect(await baseline()).toMatch(/^none: .*\(20231113\) is older than \d+; to look for a newer one, remove .*unpacked;/);
  expect(asked).toThrow(/ENOENT/);
});

it("the distribution's runsc that is there is told with its version", async () => {
  aptGetThat("exit 100");
  putUnpacked("0.0~20240729.0");
  expect(await baseline()).toBe("the distribution's, 20240729");
});

it("a set-up that is told to end while it looks for the baseline's runsc is not told that there is none", async () => {
  aptGetThat("exec sleep 1000");
  await expect(baseline(AbortSignal.timeout(200))).rejects.toThrow(/timeout/);
});
