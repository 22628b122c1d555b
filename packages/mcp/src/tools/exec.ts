import { limits } from "@mitos/protocol";
import { EXEC_TIMEOUT_EXIT_CODE } from "@mitos/sdk";
import { z } from "zod";
import { BoundedText } from "../bounded-text.ts";
import { jsonResult } from "../results.ts";
import { defineTool, sandboxId, timeoutSeconds } from "./tool.ts";

export const sandboxExec = defineTool({
  name: "sandbox_exec",
  title: "Run a command",
  description:
    "Runs a shell command (/bin/sh -c) in a sandbox to its end, in /workspace, and answers exit_code, stdout and stderr. " +
    "An exit code other than 0 is a result; 124 means that the time-out killed it. A program that should go on running must be put into the background: `cmd > log 2>&1 &`.",
  arguments: {
    sandbox: sandboxId,
    command: z.string().min(1).describe("The command line."),
    timeout_seconds: timeoutSeconds(
      limits.timeoutSecondsMax,
      `When it is over, the command and what it started are killed. Default: ${limits.execTimeoutSecondsDefault}.`,
    ),
  },
  output: z.object({
    exit_code: z.int(),
    stdout: z.string(),
    stderr: z.string(),
    notice: z.string().optional().describe("What is missing, and how to get it."),
  }),
  hints: { destructive: true, openWorld: true },
  async call({ sandbox, command, timeout_seconds: timeout = limits.execTimeoutSecondsDefault }, { backend, signal, progress }) {
    const output = { stdout: new BoundedText(), stderr: new BoundedText() };
    progress.start(timeout);
    let exitCode = 0;
    for await (const event of backend.sandbox(sandbox).execStream(command, { timeoutSeconds: timeout, signal })) {
      if (event.type === "exit") {
        exitCode = event.exitCode;
        continue;
      }
      output[event.type].push(event.data);
      progress.printed(new TextDecoder().decode(event.data));
    }
    const notices = [
      exitCode === EXEC_TIMEOUT_EXIT_CODE ? [timedOut(timeout)] : [],
      (["stdout", "stderr"] as const).filter((stream) => output[stream].cut).map((stream) => cutNotice(stream, output[stream])),
    ].flat();
    return jsonResult({
      exit_code: exitCode,
      stdout: output.stdout.text(),
      stderr: output.stderr.text(),
      ...(notices.length > 0 ? { notice: notices.join(" ") } : {}),
    });
  },
});

function timedOut(timeout: number): string {
  return `Exit code 124: unless the command chose that code itself, its time-out of ${timeout} s killed it. Raise timeout_seconds, split the work, or run it in the background.`;
}

/** @param stream - its name */
export function cutNotice(stream: string, { bytes }: BoundedText): string {
  return `${stream} was ${bytes} bytes long and its middle was left out. For all of it, write the output to a file and read that with sandbox_read_file.`;
}
