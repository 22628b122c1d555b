import { expect, it, vi } from "vitest";
import { npmInstall } from "../../scripts/lib/npm-install.mjs";
import { CommandFolder } from "./command-folder.ts";

const folder = new CommandFolder("npm-install-");

const npm = (work: string) => folder.put("npm", { versionFlag: "--version", version: "11.0.0", work });
const install = (signal = new AbortController().signal) => npmInstall(["--omit=dev"], { signal });
const onlyAsked = "install --no-save --no-audit --no-fund --omit=dev";

it("packages that npm has kept are not asked for again", async () => {
  const asked = npm("exit 0");
  await install();
  expect(asked()).toEqual([`${onlyAsked} --prefer-offline`]);
});

it("what npm could not install with what it has kept, it installs from the registry", async () => {
  const asked = npm('case "$*" in *--prefer-offline*) exit 1;; esac');
  await install();
  expect(asked()).toEqual([`${onlyAsked} --prefer-offline`, onlyAsked]);
});

it("an npm that fails twice is quoted, with what to do", async () => {
  npm("echo npm error code ENOTFOUND >&2; exit 1");
  const said = { message: expect.stringContaining("ENOTFOUND"), remedy: expect.stringContaining("reaches its registry") };
  await expect(install()).rejects.toMatchObject(said);
});

it("an npm that is told to end is not asked a second time", async () => {
  const asked = npm("exec sleep 1000");
  const ending = new AbortController();
  const installing = install(ending.signal);
  await vi.waitFor(() => expect(asked()).toHaveLength(1), { timeout: 60_000, interval: 20 });
  ending.abort(new Error("interrupted"));
  await expect(installing).rejects.toThrow("interrupted");
  expect(asked()).toHaveLength(1);
});
