import type { DiskUsage } from "@mitos/sdk";
import { Command } from "commander";
import { connectionOf } from "../context.ts";
import { byteSize, isJson, type OutputOptions, outputFlags, print, printJson, printTable } from "../output.ts";

export function duCommand(): Command {
  const command = new Command("du").description("show what templates and caches take of the server's disk");
  for (const flag of outputFlags()) command.addOption(flag);
  return command
    .addHelpText(
      "after",
      "\nOWN is what a template alone has of its files, SHARED what others have as well, SNAPSHOT its saved machine. What is shared counts\nonce in the totals. `mitos prune` removes what is not used.",
    )
    .action(async (options: OutputOptions) => {
      const { SandboxServer } = await import("@mitos/sdk");
      const usage = await SandboxServer.fromAuth(connectionOf(command)).diskUsage();
      if (isJson(options)) printJson(usage);
      else printUsage(usage);
    });
}

function printUsage({ templates, totals }: DiskUsage): void {
  if (templates.length === 0) print("No templates found.");
  else {
    printTable(
      ["TEMPLATE", "OWN", "SHARED", "SNAPSHOT"],
      templates.map(({ id, ownBytes, rootBytes, snapshotBytes }) => [id, ...[ownBytes, rootBytes - ownBytes, snapshotBytes].map(byteSize)]),
    );
  }
  if (!totals) return;
  const { layers, caches, snapshots, cacheBytesMax } = totals;
  print("");
  printTable(
    ["TOTAL", "SIZE", "UNUSED"],
    [
      [`layers (${layers.count})`, byteSize(layers.bytes), byteSize(layers.unusedBytes)],
      ["caches", byteSize(caches.bytes), byteSize(caches.bytes)],
      ["snapshots", byteSize(snapshots.bytes), undefined],
    ],
  );
  print(`\nWhat is unused may have ${byteSize(cacheBytesMax)} before the oldest of it is removed.`);
}
