import { createInterface } from "node:readline/promises";
import { Command } from "commander";
import { connectionOf, duration } from "../context.ts";
import { Exit, exitCodes, UsageError } from "../exit.ts";
import { byteSize, print } from "../output.ts";
import { withProgress } from "../progress.ts";

interface PruneOptions {
  olderThan: number;
  yes?: boolean;
}

export function pruneCommand(): Command {
  return new Command("prune")
    .description("remove layers and downloads that no template, snapshot or sandbox uses from the server's disk")
    .option(
      "--older-than <duration>",
      "only what was last used longer ago, such as 7d or 12h (default: all of it)",
      duration("--older-than"),
      0,
    )
    .option("-y, --yes", "do not ask")
    .action(async ({ olderThan: olderThanSeconds, yes }: PruneOptions, command: Command) => {
      if (!yes && !(await confirmed())) throw new Exit(exitCodes.failure);
      const { SandboxServer } = await import("@mitos/sdk");
      const removed = SandboxServer.fromAuth(connectionOf(command)).prune({ olderThanSeconds });
      print(`removed ${byteSize(await withProgress("removing", removed))}`);
    });
}

async function confirmed(): Promise<boolean> {
  if (!process.stdin.isTTY) throw new UsageError("nobody can be asked whether to remove it", "Add --yes.");
  using asking = createInterface({ input: process.stdin, output: process.stderr });
  const answer = await asking.question("Remove what nothing uses? Later builds and pulls make it again. [y/N] ");
  return /^y(es)?$/i.test(answer.trim());
}
