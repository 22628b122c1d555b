import { existsSync, readdirSync } from "node:fs";
import path from "node:path";
import { expect, it, vi } from "vitest";
import { CommandFolder } from "./command-folder.ts";

const root = path.resolve(import.meta.dirname, "../..");
const { unpackDistributionPackages } = await import(path.join(root, "scripts/lib/distribution-package.mjs"));

const folder = new CommandFolder("distribution-package-");

/** Returns which suites it was asked for. */
function aptGetThat(work: string): () => (string | undefined)[] {
  const asked = folder.put("apt-get", { versionFlag: "--version", version: "apt 2.6.1", work });
  return () => asked().map((line) => /^-o (APT::Default-Release=\S+)/.exec(line)?.[1]);
}

function unpack(signal?: AbortSignal): Promise<void> {
  return unpackDistributionPackages(["one"], {
    folder: folder.file("unpacked"),
    suites: () => ["newer", "older"],
    remedy: "Install it.",
    signal,
  });
}

function expectNothingLeft() {
  expect(existsSync(folder.file("unpacked"))).toBe(false);
  expect(readdirSync(path.join(root, ".cache"))).not.toContain(`apt-${process.pid}`);
}

it("packages that an archive does not have are looked for in the next, and then said to be in none", async () => {
  const asked = aptGetThat("exit 100");
  await expect(unpack()).rejects.toThrow(/no package of one was found/);
  expect(asked()).toEqual(["APT::Default-Release=newer", "APT::Default-Release=older"]);
  expectNothingLeft();
});

it("a search for packages that is told to end does not go on to the next archive", async () => {
  const asked = aptGetThat("exec sleep 1000");
  const interruption = new AbortController();
  const unpacking = unpack(interruption.signal);
  const failure = expect(unpacking).rejects.toThrow("told to end");
  await vi.waitFor(() => expect(asked()).toEqual(["APT::Default-Release=newer"]), { timeout: 60_000, interval: 20 });
  interruption.abort(new Error("told to end"));
  await failure;
  expect(asked()).toEqual(["APT::Default-Release=newer"]);
  expectNothingLeft();
});
