import { sandboxExec } from "./exec.ts";
import { sandboxListFiles, sandboxReadFile, sandboxWriteFile } from "./files.ts";
import { sandboxCreate, sandboxFork, sandboxList, sandboxPause, sandboxResume, sandboxTerminate } from "./life-cycle.ts";
import { sandboxPreview } from "./preview.ts";
import { sandboxRunCode } from "./run-code.ts";
import type { Tool } from "./tool.ts";
import { workspaceTools } from "./workspaces.ts";

const sandboxTools: readonly Tool[] = [
  sandboxCreate,
  sandboxExec,
  sandboxRunCode,
  sandboxReadFile,
  sandboxWriteFile,
  sandboxListFiles,
  sandboxFork,
  sandboxPreview,
  sandboxPause,
  sandboxResume,
  sandboxTerminate,
  sandboxList,
];

/** In the order in which they are listed. */
export function toolSet({ workspaces }: { workspaces: boolean }): readonly Tool[] {
  return workspaces ? [...sandboxTools, ...workspaceTools] : sandboxTools;
}
