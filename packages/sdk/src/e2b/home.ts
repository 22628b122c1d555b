/**
 * E2B's home, `/home/user`, in a sandbox whose working folder is `/workspace`: a link makes them one folder, so that a program finds its
 * files by either name, in commands, in code and in files alike.
 */

import { AgentRunError } from "../errors.ts";
import type { Sandbox } from "../sandbox.ts";
import { SandboxError } from "./errors.ts";

export const home = "/home/user";
export const workspace = "/workspace";

/** A template that brings a `/home/user` of its own keeps it. @throws SandboxError when the sandbox's user may not make it */
export async function prepareHome(sandbox: Pick<Sandbox, "exec">, signal: AbortSignal): Promise<void> {
  const script = `[ -e ${home} ] || { mkdir -p ${workspace} /home && ln -s ${workspace} ${home}; }`;
  try {
    const { exitCode, stderr } = await sandbox.exec(script, { cwd: "/", signal });
    if (exitCode !== 0) throw new SandboxError(`${home} cannot be made in the sandbox: ${stderr.trim()}`);
  } catch (error) {
    // The mock engine has a life cycle and no files.
    if (!(error instanceof AgentRunError) || error.code !== "not_supported") throw error;
  }
}

/** A relative path is one in the home. */
export function homeOf(path = "."): string {
  if (path.startsWith("/")) return path;
  if (path === "." || path === "" || path === "~") return home;
  return `${home}/${path.replace(/^(\.|~)\//, "")}`;
}

/** Watching is by the folder's own name. */
export function inWorkspace(path: string): string {
  const absolute = homeOf(path);
  return absolute === home || absolute.startsWith(`${home}/`) ? `${workspace}${absolute.slice(home.length)}` : absolute;
}

/** E2B's `user` is whom commands run as when nothing is said. */
export function userOf(user: string | undefined): string | undefined {
  return user === "user" ? undefined : user;
}
