import { limits, newSandboxId } from "@mitos/protocol";
import { AgentRunError, create, type ServerSandbox } from "@mitos/sdk";
import { z } from "zod";
import { ToolError, toToolError } from "../errors.ts";
import { jsonResult, textResult } from "../results.ts";
import { type Call, defineTool, sandboxId, timeoutSeconds } from "./tool.ts";

const templateDefault = "python";
const sandboxesMax = 500;

const template = z.string().min(1).max(255).optional();

export const sandboxCreate = defineTool({
  name: "sandbox_create",
  title: "Create a sandbox",
  description:
    "Creates a sandbox, an isolated Linux machine with files, processes and live interpreters, and answers its id. " +
    "It lives until it is terminated or its timeout_seconds are over.",
  arguments: {
    pool: template.describe(`Name of the template that it is created from. Default: ${templateDefault}.`),
    template: template.describe("Another name for pool."),
    env: z.record(z.string(), z.string()).optional().describe("Environment variables of its programs."),
    timeout_seconds: timeoutSeconds(limits.timeoutSecondsMax, "It ends by itself after this time. Default: never."),
  },
  hints: {},
  async call({ pool, template, env, timeout_seconds: timeout }, { backend, created, signal }) {
    if (pool !== undefined && template !== undefined && pool !== template) {
      throw new ToolError("invalid_arguments", "pool and template name different templates", "Give one of them.");
    }
    const id = newSandboxId();
    created.add(id);
    const sandbox = await create({
      ...backend.connection,
      id,
      template: pool ?? template ?? templateDefault,
      env,
      timeoutSeconds: timeout,
    }).catch((error: unknown) => {
      // Without an answer it may exist all the same.
      if (error instanceof AgentRunError && error.status !== undefined && error.status < 500) created.delete(id);
      throw error;
    });
    if (signal.aborted) await endUnknown([id], { backend, created });
    return textResult(`Created sandbox ${sandbox.id}`);
  },
});

export const sandboxFork = defineTool({
  name: "sandbox_fork",
  title: "Fork a sandbox",
  description:
    "Forks a running sandbox: every child continues from its exact state (files, memory, processes, interpreters) and then goes its own way. " +
    "The sandbox runs on. Answers the ids of the children. Use it to try several ideas from one prepared state.",
  arguments: {
    sandbox: sandboxId,
    replicas: z.int().min(1).max(limits.forkCountMax).optional().describe("Number of children. Default: 1."),
  },
  output: z.object({ ids: z.array(z.string()) }),
  hints: {},
  async call({ sandbox, replicas = 1 }, { backend, created, signal }) {
    const base = newSandboxId();
    const wanted = replicas === 1 ? [base] : Array.from({ length: replicas }, (_, index) => `${base}-${index}`);
    created.add(...wanted);
    const children = await backend
      .sandbox(sandbox)
      .fork({ count: replicas, id: base })
      .catch(async (error) => {
        throw await withChildrenThatExist(error, sandbox, wanted, { backend, created });
      });
    const ids = children.map(({ id }) => id);
    if (signal.aborted) await endUnknown(ids, { backend, created });
    return { ...textResult(JSON.stringify(ids)), structuredContent: { ids } };
  },
});

export const sandboxPause = defineTool({
  name: "sandbox_pause",
  title: "Pause a sandbox",
  description: "Saves a sandbox to disk and frees its memory. Until sandbox_resume every other use of it is refused.",
  arguments: { sandbox: sandboxId },
  hints: {},
  async call({ sandbox }, { backend }) {
    await backend.sandbox(sandbox).pause();
    return textResult(`Paused sandbox ${sandbox}`);
  },
});

export const sandboxResume = defineTool({
  name: "sandbox_resume",
  title: "Resume a sandbox",
  description: "Lets a paused sandbox go on where it was.",
  arguments: { sandbox: sandboxId },
  hints: {},
  async call({ sandbox }, { backend }) {
    await backend.sandbox(sandbox).resume();
    return textResult(`Resumed sandbox ${sandbox}`);
  },
});

export const sandboxTerminate = defineTool({
  name: "sandbox_terminate",
  title: "Terminate a sandbox",
  description: "Ends a sandbox for good, with everything in it. What was forked from it lives on.",
  arguments: { sandbox: sandboxId },
  hints: { destructive: true, idempotent: true },
  async call({ sandbox }, { backend, created }) {
    await backend.sandbox(sandbox).terminate();
    created.delete(sandbox);
    return textResult(`Terminated sandbox ${sandbox}`);
  },
});

export const sandboxList = defineTool({
  name: "sandbox_list",
  title: "List sandboxes",
  description: "Answers the sandboxes of this server that you may see, with their state and what they were forked from.",
  arguments: {},
  output: z.object({
    sandboxes: z.array(
      z.object({
        id: z.string(),
        state: z.string().optional(),
        template: z.string(),
        parent: z.string().nullable(),
        created_at: z.string(),
      }),
    ),
    notice: z.string().optional().describe("What is missing, and how to get it."),
  }),
  hints: { readOnly: true },
  async call(_args, { backend }) {
    const all = await backend.server.listSandboxes();
    const notice = `There are ${all.length} sandboxes and the first ${sandboxesMax} are listed. Terminate those that are not needed.`;
    return jsonResult({ sandboxes: all.slice(0, sandboxesMax).map(toRow), ...(all.length > sandboxesMax ? { notice } : {}) });
  },
});

/**
 * A call that was cancelled has no result, so nobody would know of what it made. Cutting off its request would leave it to chance whether
 * there is something; ending what there is does not.
 */
async function endUnknown(ids: readonly string[], { backend, created }: Pick<Call, "backend" | "created">): Promise<void> {
  await Promise.allSettled(ids.map((id) => backend.sandbox(id).terminate()));
  for (const id of ids) created.delete(id);
}

/** A fork whose answer is lost may have happened, wholly or on an older server in part: the ids were ours, so the list tells. */
async function withChildrenThatExist(
  error: unknown,
  parent: string,
  wanted: readonly string[],
  { backend, created }: Pick<Call, "backend" | "created">,
): Promise<unknown> {
  const failure = toToolError(error);
  if (!(failure instanceof ToolError)) return failure;
  const listed = await backend.server.listSandboxes({ parent }).catch(() => undefined);
  if (!listed) {
    const cause = `${failure.message}; whether children exist could not be found out, their ids would be ${wanted.join(", ")}`;
    return new ToolError(failure.code, cause, `Look for them with sandbox_list. ${failure.remediation}`);
  }
  const existing = wanted.filter((id) => listed.some((row) => row.id === id));
  for (const id of wanted) if (!existing.includes(id)) created.delete(id);
  if (existing.length === 0) return failure;
  const cause = `${failure.message}; these children exist: ${existing.join(", ")}`;
  return new ToolError(failure.code, cause, "Use these children, or end them with sandbox_terminate, before you fork again.");
}

function toRow({ id, state, templateId, parentId, createdAt }: ServerSandbox) {
  return {
    id,
    ...(state === undefined ? {} : { state }),
    template: templateId,
    parent: parentId ?? null,
    created_at: createdAt,
  };
}
