import { z } from "zod";
import { jsonResult } from "../results.ts";
import { defineTool, sandboxId } from "./tool.ts";

export const sandboxPreview = defineTool({
  name: "sandbox_preview",
  title: "Open a port",
  description:
    "Answers a URL under which an HTTP server that listens on a port in a sandbox is reached from outside. Whoever has the URL can open it until it expires.",
  arguments: { sandbox: sandboxId, port: z.int().min(1).max(65_535).describe("Where the program in the sandbox listens.") },
  output: z.object({
    url: z.string().describe("For programs."),
    browser_url: z.string().optional().describe("For browsers: an origin of its own."),
    expires_unix: z.number(),
  }),
  hints: { readOnly: true },
  async call({ sandbox, port }, { backend }) {
    const { url, browserUrl, expiresUnix } = await backend.sandbox(sandbox).preview(port);
    return jsonResult({ url, ...(browserUrl === undefined ? {} : { browser_url: browserUrl }), expires_unix: expiresUnix });
  },
});
