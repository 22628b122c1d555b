import type { Command, ExecOptions, Sandbox } from "@mitos/sdk";
import { write } from "./output.ts";

/** Runs a command in the sandbox with its output on ours. @returns its exit code, as a shell would have it */
export async function execHere(sandbox: Sandbox, command: Command, options: ExecOptions): Promise<number> {
  for await (const event of sandbox.execStream(command, options)) {
    if (event.type === "exit") return event.exitCode < 0 ? 255 : event.exitCode;
    await write(event.type === "stdout" ? process.stdout : process.stderr, event.data);
  }
  throw new Error("execStream ended without an exit event");
}
