import { readFileSync } from "node:fs";
import { Command } from "commander";
import { print } from "../output.ts";

export function versionCommand(): Command {
  return new Command("version").description("print the version").action(printVersion);
}

export function printVersion(): void {
  print(`mitos ${version()} (node ${process.versions.node}, ${process.platform}/${process.arch})`);
}

export function version(): string {
  const manifest = readFileSync(new URL("../../package.json", import.meta.url), "utf8");
  return (JSON.parse(manifest) as { version: string }).version;
}
