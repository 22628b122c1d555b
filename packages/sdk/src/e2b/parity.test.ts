import { readFileSync } from "node:fs";
import path from "node:path";
import * as theirs from "@e2b/code-interpreter";
import { describe, expect, expectTypeOf, it } from "vitest";
import * as ours from "./index.ts";

/** What E2B's published packages have is here, or is named in the guide among what is not. */

const guide = readFileSync(path.resolve(import.meta.dirname, "../../../../docs/guides/migrate-from-e2b.md"), "utf8");

const notHere = {
  exports: [
    "ApiClient",
    "ConnectionConfig",
    "FileUploadError",
    "Git",
    "GitAuthError",
    "GitUpstreamError",
    "LogEntry",
    "LogEntryEnd",
    "LogEntryStart",
    "ReadyCmd",
    "Secret",
    "SecretError",
    "SecretNotFoundError",
    "SecretPaginator",
    "Template",
    "TemplateBase",
    "Volume",
    "VolumeError",
    "VolumeFileType",
    "VolumeNotFoundError",
    "VolumePathNotFoundError",
    "defaultBuildLogger",
    "getSignature",
    "waitForFile",
    "waitForPort",
    "waitForProcess",
    "waitForTimeout",
    "waitForURL",
  ],
};

it("every export of @e2b/code-interpreter is here, or named in the guide as not available", () => {
  const missing = Object.keys(theirs).filter((name) => !(name in ours));
  expect(missing.sort()).toEqual(notHere.exports.sort());
  expect(missing.filter((name) => !guide.includes(`\`${name}\``))).toEqual([]);
});

const made = (Class: { prototype: object }) => {
  const names = new Set<string>();
  for (let at = Class.prototype; at !== Object.prototype; at = Object.getPrototypeOf(at))
    for (const name of Object.getOwnPropertyNames(at)) names.add(name);
  return [...names];
};
const own = (Class: object) => {
  const names = new Set<string>();
  for (let at = Class; at !== Function.prototype; at = Object.getPrototypeOf(at))
    for (const name of Object.getOwnPropertyNames(at)) names.add(name);
  return [...names];
};

describe("every public member is here, and named in the guide", () => {
  const sandbox = new ours.Sandbox({ sandboxId: "sb-1", apiUrl: "127.0.0.1:1" });
  const connection = {
    sandboxId: "sb-1",
    envdVersion: "0.6.4",
    apiKey: "e2b_0",
    sandboxUrl: "http://127.0.0.1:1",
    apiUrl: "http://127.0.0.1:1",
  };
  const other = new theirs.Sandbox(connection);
  // What the types call private, protected or internal.
  const internal =
    /^(constructor|_.*|handle.*|resolve.*|createSandbox|connectSandbox|forkSandbox|fileUrl|start|length|name|prototype|boundOpts|default.*|jupyterUrl|get[A-Z]\w*RequestUrl|includeDiagnostics|supportsStdinClose|rpc|streamReader|\w*OctetStream|\w*Multipart\w*)$/;

  it.each([
    ["Sandbox", made(theirs.Sandbox), made(ours.Sandbox)],
    ["Sandbox, static", own(theirs.Sandbox), own(ours.Sandbox)],
    ["commands", made(other.commands.constructor as never), made(sandbox.commands.constructor as never)],
    ["files", made(other.files.constructor as never), made(sandbox.files.constructor as never)],
    ["pty", made(other.pty.constructor as never), made(sandbox.pty.constructor as never)],
  ])("%s", (_what, wanted, got) => {
    const names = wanted.filter((name) => !internal.test(name));
    expect(names.length).toBeGreaterThan(3);
    expect(names.filter((name) => !got.includes(name))).toEqual([]);
    expect(names.filter((name) => !new RegExp(`[\`.]${name}\\b`).test(guide))).toEqual([]);
  });
});

/** Checked by `tsc`: what a program passes to E2B it may pass here, and what it gets here it may use as E2B's. */
describe("types", () => {
  it("of options are taken", () => {
    expectTypeOf<theirs.ConnectionOpts>().toExtend<ours.ConnectionOpts>();
    expectTypeOf<theirs.SandboxOpts>().toExtend<ours.SandboxOpts>();
    expectTypeOf<theirs.SandboxConnectOpts>().toExtend<ours.SandboxConnectOpts>();
    expectTypeOf<theirs.SandboxListOpts>().toExtend<ours.SandboxListOpts>();
    expectTypeOf<theirs.SandboxPauseOpts>().toExtend<ours.SandboxPauseOpts>();
    expectTypeOf<theirs.SandboxForkOpts>().toExtend<ours.SandboxForkOpts>();
    expectTypeOf<theirs.E2BClientOpts>().toExtend<ours.E2BClientOpts>();
    expectTypeOf<theirs.CommandStartOpts>().toExtend<ours.CommandStartOpts>();
    expectTypeOf<theirs.CommandConnectOpts>().toExtend<ours.CommandConnectOpts>();
    expectTypeOf<theirs.FilesystemReadOpts>().toExtend<ours.FilesystemReadOpts>();
    expectTypeOf<theirs.FilesystemWriteOpts>().toExtend<ours.FilesystemWriteOpts>();
    // A result has charts, whose types are enumerations there and plain texts here.
    expectTypeOf<Omit<theirs.RunCodeOpts, "onResult">>().toExtend<ours.RunCodeOpts>();
    expectTypeOf<theirs.CreateCodeContextOpts>().toExtend<ours.CreateCodeContextOpts>();
  });

  it("of arguments are taken", () => {
    expectTypeOf<Parameters<theirs.Sandbox["setTimeout"]>>().toExtend<Parameters<ours.Sandbox["setTimeout"]>>();
    expectTypeOf<Parameters<theirs.Sandbox["kill"]>>().toExtend<Parameters<ours.Sandbox["kill"]>>();
    expectTypeOf<Parameters<theirs.Sandbox["pause"]>>().toExtend<Parameters<ours.Sandbox["pause"]>>();
    expectTypeOf<Parameters<theirs.Sandbox["connect"]>>().toExtend<Parameters<ours.Sandbox["connect"]>>();
    expectTypeOf<Parameters<theirs.Sandbox["fork"]>>().toExtend<Parameters<ours.Sandbox["fork"]>>();
    expectTypeOf<Parameters<theirs.Sandbox["removeCodeContext"]>>().toExtend<Parameters<ours.Sandbox["removeCodeContext"]>>();
    expectTypeOf<Parameters<theirs.Filesystem["list"]>>().toExtend<Parameters<ours.Filesystem["list"]>>();
    expectTypeOf<Parameters<theirs.Filesystem["rename"]>>().toExtend<Parameters<ours.Filesystem["rename"]>>();
    expectTypeOf<Parameters<theirs.Pty["create"]>>().toExtend<Parameters<ours.Pty["create"]>>();
    expectTypeOf<Parameters<theirs.Pty["connect"]>>().toExtend<Parameters<ours.Pty["connect"]>>();
    expectTypeOf<Parameters<theirs.Pty["resize"]>>().toExtend<Parameters<ours.Pty["resize"]>>();
  });

  it("of answers can be used as E2B's", () => {
    expectTypeOf<ours.CommandResult>().toExtend<{ [Key in keyof theirs.CommandResult]: theirs.CommandResult[Key] | undefined }>();
    expectTypeOf<ours.ProcessInfo>().toExtend<theirs.ProcessInfo>();
    expectTypeOf<ours.SandboxInfo>().toExtend<theirs.SandboxInfo>();
    expectTypeOf<ours.Context>().toExtend<theirs.Context>();
    expectTypeOf<ours.Logs>().toExtend<theirs.Logs>();
    expectTypeOf<ours.OutputMessage>().toExtend<theirs.OutputMessage>();
    expectTypeOf<ours.ExecutionError>().toExtend<theirs.ExecutionError>();
  });
});
