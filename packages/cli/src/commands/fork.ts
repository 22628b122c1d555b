import { Command } from "commander";
import { connectionOf, positiveInteger, wholeNumber } from "../context.ts";
import { print } from "../output.ts";
import { timeoutFlag, waitFlags, waiting } from "../waiting.ts";

/** `mitos fork` and `mitos sandbox fork` */
export function forkCommand(): Command {
  const command = new Command("fork")
    .description("fork a running sandbox and print the ids of its children")
    .argument("<id>", "the sandbox; it runs on")
    .option("--replicas <n>", "how many children", positiveInteger("--replicas"), 1)
    .option("--count <n>", "the same; wins over --replicas", wholeNumber("--count", 0), 0)
    .addOption(timeoutFlag());
  for (const flag of waitFlags()) command.addOption(flag);
  return command.action(async (id: string, options: { replicas: number; count: number; timeout: number }) => {
    const { Sandbox } = await import("@mitos/sdk");
    const children = await waiting("forking", options.timeout, async (signal) => {
      const parent = await Sandbox.connect(id, connectionOf(command));
      return parent.fork({ count: options.count || options.replicas, signal });
    });
    for (const child of children) print(child.id);
  });
}
