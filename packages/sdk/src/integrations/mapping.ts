/**
 * What every adapter tells its framework: plain data with the key names of the published adapters, so that a model sees the same
 * whichever framework or language carries it.
 */

import type { Command, ExecResult } from "../exec.ts";
import type { FileInfo } from "../files.ts";
import type { Execution } from "../run-code.ts";
import type { Sandbox } from "../sandbox.ts";

/** The operations that an adapter needs of a sandbox. */
export type OpsTarget = Pick<Sandbox, "id" | "exec" | "runCode"> & { readonly files: Pick<Sandbox["files"], "read" | "write" | "list"> };

export interface CommandOutcome {
  stdout: string;
  stderr: string;
  exit_code: number;
  exec_time_ms: number;
}

export interface FileOutcome {
  name: string;
  is_dir: boolean;
  size: number;
  mode: number;
  /** Unix seconds; missing when the server does not tell. */
  modified_at?: string;
}

export interface ExecutionOutcome {
  text: string | null;
  logs: { stdout: string[]; stderr: string[] };
  results: { data: Record<string, string>; is_main_result: boolean }[];
  error: { name: string; value: string; traceback: string[] } | null;
}

/** @param timeoutSeconds - default: 30 */
export async function mapExecute(target: OpsTarget, command: Command, timeoutSeconds = 30, signal?: AbortSignal): Promise<CommandOutcome> {
  return resultToData(await target.exec(command, { timeoutSeconds, signal }));
}

export async function mapFilesRead(target: OpsTarget, path: string, signal?: AbortSignal): Promise<string> {
  return target.files.read(path, { signal });
}

export async function mapFilesWrite(
  target: OpsTarget,
  path: string,
  content: string,
  signal?: AbortSignal,
): Promise<{ path: string; written: true }> {
  await target.files.write(path, content, { signal });
  return { path, written: true };
}

export async function mapFilesList(target: OpsTarget, path = "/"): Promise<FileOutcome[]> {
  return (await target.files.list(path)).map(fileInfoToData);
}

/**
 * @param language - default: `python`
 * @param timeoutSeconds - default: 60
 */
export async function mapRunCode(
  target: OpsTarget,
  code: string,
  language = "python",
  timeoutSeconds = 60,
  signal?: AbortSignal,
): Promise<ExecutionOutcome> {
  return executionToData(await target.runCode(code, { language, timeoutSeconds, signal }));
}

export function resultToData({ stdout, stderr, exitCode, execTimeMs = 0 }: ExecResult): CommandOutcome {
  return { stdout, stderr, exit_code: exitCode, exec_time_ms: execTimeMs };
}

export function fileInfoToData({ name, isDir, size, mode, modifiedAt }: FileInfo): FileOutcome {
  return { name, is_dir: isDir, size, mode, ...(modifiedAt === undefined ? {} : { modified_at: modifiedAt }) };
}

export function executionToData({ text, logs, results, error }: Execution): ExecutionOutcome {
  return {
    text,
    logs: { stdout: [...logs.stdout], stderr: [...logs.stderr] },
    results: results.map(({ data, isMainResult }) => ({ data: { ...data }, is_main_result: isMainResult })),
    error: error && { name: error.name, value: error.value, traceback: [...error.traceback] },
  };
}

/** A callback that takes text for output that comes as bytes: a character may be cut between two chunks. */
export function asText(write: (text: string) => void): (bytes: Uint8Array) => void {
  const decoder = new TextDecoder();
  return (bytes) => {
    const text = decoder.decode(bytes, { stream: true });
    if (text) write(text);
  };
}
