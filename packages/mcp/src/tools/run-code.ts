import { limits } from "@mitos/protocol";
import type { Result } from "@mitos/sdk";
import type { ContentBlock } from "@modelcontextprotocol/server";
import { z } from "zod";
import { BoundedText } from "../bounded-text.ts";
import { jsonResult } from "../results.ts";
import { cutNotice } from "./exec.ts";
import { defineTool, sandboxId, timeoutSeconds } from "./tool.ts";

/** Base64 characters of one image; models take none that are larger. */
const imageCharsMax = 5 * 1024 * 1024;
const imagesMax = 10;

export const sandboxRunCode = defineTool({
  name: "sandbox_run_code",
  title: "Run code",
  description:
    "Runs code in a live interpreter of a sandbox, which keeps its variables from call to call, and answers the value of the last expression (text), " +
    "what was printed (logs), the exception if there was one (error), and plots as images.",
  arguments: {
    sandbox: sandboxId,
    code: z.string().describe("The code."),
    language: z.enum(["python", "javascript", "bash"]).optional().describe("Default: python."),
    timeout_seconds: timeoutSeconds(
      limits.timeoutSecondsMax,
      `When it is over, the code is interrupted; the interpreter keeps its state. Default: ${limits.runCodeTimeoutSecondsDefault}.`,
    ),
  },
  output: z.object({
    text: z.string().nullable().describe("Value of the last expression; null when it has none."),
    logs: z.object({ stdout: z.string(), stderr: z.string() }),
    displays: z.array(z.string()).optional().describe("What the code displayed besides, as text."),
    error: z.object({ name: z.string(), value: z.string(), traceback: z.array(z.string()) }).nullable(),
    notice: z.string().optional().describe("What is missing, and how to get it."),
  }),
  hints: { destructive: true, openWorld: true },
  async call(
    { sandbox, code, language = "python", timeout_seconds: timeout = limits.runCodeTimeoutSecondsDefault },
    { backend, signal, progress },
  ) {
    const logs = { stdout: new BoundedText(), stderr: new BoundedText() };
    const printed = (stream: keyof typeof logs) => (piece: string) => {
      logs[stream].push(new TextEncoder().encode(piece));
      progress.printed(piece);
    };
    progress.start(timeout);
    const execution = await backend.sandbox(sandbox).runCode(code, {
      language,
      timeoutSeconds: timeout,
      signal,
      onStdout: printed("stdout"),
      onStderr: printed("stderr"),
    });
    const value = bounded(execution.text ?? "");
    const displays = execution.results.filter(({ isMainResult }) => !isMainResult).flatMap(({ text: plain }) => plain ?? []);
    const shown = bounded(displays.join("\n"));
    const images = execution.results.flatMap((result) => imagesOf(result, sandbox));
    const fitting = images.filter(({ chars }) => chars <= imageCharsMax).slice(0, imagesMax);
    const notices = [
      ...(["stdout", "stderr"] as const).filter((stream) => logs[stream].cut).map((stream) => cutNotice(stream, logs[stream])),
      ...(value.cut ? [cutNotice("text", value)] : []),
      ...(shown.cut ? [cutNotice("displays", shown)] : []),
      ...(fitting.length < images.length ? [leftOut(images.length - fitting.length)] : []),
    ];
    const outcome = {
      text: execution.text === null ? null : value.text(),
      logs: { stdout: logs.stdout.text(), stderr: logs.stderr.text() },
      ...(displays.length > 0 ? { displays: shown.cut ? [shown.text()] : displays } : {}),
      error: execution.error,
      ...(notices.length > 0 ? { notice: notices.join(" ") } : {}),
    };
    return jsonResult(outcome, ...fitting.map(({ block }) => block));
  },
});

function bounded(value: string): BoundedText {
  const result = new BoundedText();
  result.push(new TextEncoder().encode(value));
  return result;
}

/** PNG and JPEG are images to every client. SVG is a resource: a model that is given it as an image refuses the whole conversation. */
function imagesOf({ png, jpeg, svg }: Result, sandbox: string): { chars: number; block: ContentBlock }[] {
  if (png !== undefined) return [{ chars: png.length, block: image(png, "image/png") }];
  if (jpeg !== undefined) return [{ chars: jpeg.length, block: image(jpeg, "image/jpeg") }];
  if (svg === undefined) return [];
  const resource = { uri: `mitos://${sandbox}/display.svg`, mimeType: "image/svg+xml", text: svg };
  return [{ chars: svg.length, block: { type: "resource", resource } }];
}

/** Some programs wrap base64, which not every client accepts. */
function image(base64: string, mimeType: string): ContentBlock {
  return { type: "image", data: base64.replaceAll(/\s/g, ""), mimeType };
}

function leftOut(count: number): string {
  return `${count} images were left out: at most ${imagesMax} of ${imageCharsMax / 1024 / 1024} MiB each are shown. Save them to files and look at them one by one, or make them smaller.`;
}
