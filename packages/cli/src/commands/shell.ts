import type { Sandbox } from "@mitos/sdk";
import { Command } from "commander";
import { connectionOf, poolOf } from "../context.ts";
import { CommandError, Exit, UsageError } from "../exit.ts";
import { withProgress } from "../progress.ts";
import { attachTerminal } from "../terminal.ts";

export function shellCommand(): Command {
  return new Command("shell").argument("<id>", "the sandbox, or `new`").action(async (id: string, _options: unknown, command: Command) => {
    if (!process.stdin.isTTY || !process.stdout.isTTY) {
      throw new UsageError("mitos shell needs a terminal", "Use `mitos sandbox exec <id> <command>` in scripts.");
    }
    const { create, Sandbox } = await import("@mitos/sdk");
    const connection = connectionOf(command);
    if (id !== "new") throw new Exit(await shell(await Sandbox.connect(id, connection)));
    const sandbox = await withProgress("creating the sandbox", create({ ...connection, template: poolOf(command) }));
    throw new Exit(await shellThenTerminate(sandbox));
  });
}

async function shellThenTerminate(sandbox: Sandbox): Promise<number> {
  await using _ended = sandbox;
  return await shell(sandbox);
}

async function shell(sandbox: Sandbox): Promise<number> {
  const end = await attachTerminal(sandbox, process.stdin, process.stdout);
  if (end.failure === undefined) return end.exitCode < 0 ? 255 : end.exitCode;
  if (end.failure instanceof Error && "code" in end.failure) throw end.failure;
  throw new CommandError("the terminal was lost", String(end.failure), `Connect again: mitos shell ${sandbox.id}`);
}
