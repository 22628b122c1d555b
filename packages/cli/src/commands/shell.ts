import type { Connection, Sandbox } from "@mitos/sdk";
import { Command } from "commander";
import { Creating } from "../building/creating.ts";
import { connectionOf, poolOf } from "../context.ts";
import { CommandError, Exit, UsageError } from "../exit.ts";
import { withProgress } from "../progress.ts";
import { interruptible } from "../signals.ts";
import { attachTerminal } from "../terminal.ts";

export function shellCommand(): Command {
  return new Command("shell").argument("<id>", "the sandbox, or `new`").action(async (id: string, _options: unknown, command: Command) => {
    if (!process.stdin.isTTY || !process.stdout.isTTY) {
      throw new UsageError("mitos shell needs a terminal", "Use `mitos sandbox exec <id> <command>` in scripts.");
    }
    const { Sandbox } = await import("@mitos/sdk");
    const connection = connectionOf(command);
    if (id !== "new") throw new Exit(await shell(await Sandbox.connect(id, connection)));
    throw new Exit(await shellThenTerminate(await newSandbox(connection, await poolOf(command))));
  });
}

async function newSandbox(connection: Connection, template: string): Promise<Sandbox> {
  using interrupt = interruptible();
  const creating = new Creating();
  return await withProgress(() => creating.text, creating.create(connection, template, { interrupt: interrupt.signal }));
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
