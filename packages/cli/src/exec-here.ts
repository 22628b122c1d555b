import { fstatSync, statSync } from "node:fs";
import type { Command, ExecOptions, Sandbox } from "@mitos/sdk";
import { write } from "./output.ts";
import type { Interrupt } from "./signals.ts";

export interface ExecHereOptions extends Pick<ExecOptions, "cwd" | "env"> {
  /** 0: the server's default */
  readonly timeoutSeconds: number;
}

/**
 * Runs a command in the sandbox with its output on ours, and our input as its own where ours is a pipe or a file.
 *
 * @returns its exit code, as a shell would have it
 */
export async function execHere(sandbox: Sandbox, command: Command, options: ExecHereOptions, { signal }: Interrupt): Promise<number> {
  const { timeoutSeconds, cwd, env } = options;
  if (hasInput()) return execWithInput(sandbox, command, { cwd, env, timeoutSeconds }, signal);
  for await (const event of sandbox.execStream(command, { cwd, env, timeoutSeconds: timeoutSeconds || undefined, signal })) {
    if (event.type === "exit") return shellCode(event.exitCode);
    await write(event.type === "stdout" ? process.stdout : process.stderr, event.data);
  }
  throw new Error("execStream ended without an exit event");
}

/** Neither a terminal nor `/dev/null`, nor closed. */
function hasInput(): boolean {
  if (process.stdin.isTTY) return false;
  try {
    const input = fstatSync(0);
    return !input.isCharacterDevice() || input.rdev !== statSync("/dev/null").rdev;
  } catch {
    return false;
  }
}

/** The server's own default for an exec; a process that is started on its own has none. */
const timeoutSecondsDefault = 30;

/** Prints a NUL and waits for a line before it becomes the program: of what it printed before somebody follows it, not all would be kept. */
const gate = 'printf "\\000"; read -r go && exec "$@"';

async function execWithInput(sandbox: Sandbox, command: Command, options: ExecHereOptions, signal: AbortSignal): Promise<number> {
  const argv = typeof command === "string" ? ["/bin/sh", "-c", command] : command;
  const process_ = sandbox.execBackground(["/bin/sh", "-c", gate, "sh", ...argv], {
    cwd: options.cwd,
    env: options.env,
    stdin: true,
    timeoutSeconds: options.timeoutSeconds || timeoutSecondsDefault,
  });
  let isOpen = false;
  let hasEnded = false;
  try {
    for await (const event of process_.output({ signal })) {
      if (event.type === "exit") {
        hasEnded = true;
        return shellCode(event.exitCode);
      }
      if (event.type === "gap") {
        process.stderr.write(`mitos: ${event.to - event.from} bytes of ${event.stream} were lost\n`);
        continue;
      }
      let { data } = event;
      if (!isOpen && event.type === "stdout") {
        isOpen = true;
        data = data.subarray(1);
        sendInput(process_).catch(() => undefined); // a program that reads no more shows in its output
      }
      await write(event.type === "stdout" ? process.stdout : process.stderr, data);
    }
    throw new Error("the output ended without an exit event");
  } finally {
    process.stdin.destroy();
    if (!hasEnded) await process_.kill().catch(() => undefined);
  }
}

async function sendInput(target: ReturnType<Sandbox["execBackground"]>): Promise<void> {
  await target.writeStdin("\n");
  for await (const data of process.stdin) await target.writeStdin(data as Buffer);
  await target.writeStdin("", { close: true });
}

/** A program that a signal ended has no code of its own. */
function shellCode(exitCode: number): number {
  return exitCode < 0 ? 255 : exitCode;
}
