import { z } from "zod";
import { ToolError } from "../errors.ts";
import { defineTool, sandboxId, type Tool } from "./tool.ts";

const name = z.string().min(1).describe("Name of the workspace.");

/** Listed with `--enable-workspace-tools`, for clients that expect to find them. No Mitos server has workspaces yet, and each call says so. */
export const workspaceTools: readonly Tool[] = [
  workspaceTool("workspace_create", "Create a workspace", { name }),
  workspaceTool("workspace_list", "List workspaces", {}),
  workspaceTool("workspace_attach", "Attach a workspace to a sandbox", { sandbox: sandboxId, workspace: name }),
  workspaceTool("workspace_delete", "Delete a workspace", { name }),
];

function workspaceTool(tool: string, title: string, args: z.ZodRawShape): Tool {
  return defineTool({
    name: tool,
    title,
    description: `${title}. Not available on this server: every call answers tool_not_dispatchable.`,
    arguments: args,
    // What the call would do is not done.
    hints: { readOnly: true },
    call: () => {
      const remediation = "Keep state in files of a sandbox: sandbox_write_file, sandbox_pause and sandbox_resume.";
      throw new ToolError("tool_not_dispatchable", `${tool} has no server behind it: workspaces are not available`, remediation);
    },
  });
}
