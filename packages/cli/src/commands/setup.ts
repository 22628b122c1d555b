import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import path from "node:path";
import { Command } from "commander";
import { CommandError, Exit, exitCodes } from "../exit.ts";

export function setupCommand(): Command {
  return new Command("setup").addCommand(
    new Command("microvm")
      .description("lay ready what microVMs need beside gVisor: QEMU, a kernel, a disk, a small root; nothing is installed")
      .addHelpText(
        "after",
        "\nTakes them from the archive of this machine's Debian or Ubuntu, about 150 MB, and makes 0.5 GB in the checkout's .cache/microvm. No root is\nneeded. QEMU 8.2 or newer on PATH is used instead of the archive's. What is there already is not made again.",
      )
      .action(setUpMicrovm),
  );
}

const script = path.resolve(import.meta.dirname, "../../../../scripts/setup-microvm.mjs");

async function setUpMicrovm(): Promise<void> {
  if (!existsSync(script)) {
    throw new CommandError("microVMs cannot be set up here", `${script} is missing`, "Run the command of a checkout of Mitos.");
  }
  const exitCode = await runToItsEnd(script);
  // It has said everything itself.
  if (exitCode !== exitCodes.ok) throw new Exit(exitCode);
}

/** Passes signals on and waits, so that what was begun is put away before this command ends. */
async function runToItsEnd(file: string): Promise<number> {
  const child = spawn(process.execPath, [file], { stdio: "inherit" });
  const names = ["SIGINT", "SIGTERM", "SIGHUP"] as const;
  const passOn = (name: NodeJS.Signals) => child.kill(name);
  for (const name of names) process.on(name, passOn);
  try {
    return await new Promise<number>((resolve, reject) => {
      child.on("error", reject);
      child.on("close", (code) => resolve(code ?? exitCodes.failure));
    });
  } finally {
    for (const name of names) process.off(name, passOn);
  }
}
