import type { Connection } from "./config.ts";
import { newIdempotencyKey } from "./config.ts";
import { AgentRunError, NotFoundError } from "./errors.ts";
import type { Sandbox } from "./sandbox.ts";
import { type ForkTemplateOptions, SandboxServer } from "./server.ts";
import type { Workload } from "./types.ts";

/** Which server, which template, and what the new sandbox is given. */
export interface CreateOptions extends Connection, ForkTemplateOptions {
  /** Default: `python`. */
  template?: string | undefined;
  /** The name of `template` in the other SDKs. */
  image?: string | undefined;
  /** Default: a new one. */
  id?: string | undefined;
  /** Belongs to the template, which is built with it. */
  workload?: Workload | undefined;
}

/** What may stand beside the template's name. */
export type NamedCreateOptions = Omit<CreateOptions, "template" | "image">;

/**
 * A new sandbox, from a template that is built when the server does not have it yet.
 *
 * @param first - the template's name, or all options
 * @param more - the other options, after a name
 */
export async function create(first: string | CreateOptions = {}, more: NamedCreateOptions = {}): Promise<Sandbox> {
  const options: CreateOptions = typeof first === "string" ? { ...more, template: first } : first;
  const { template: named, image, id, apiKey, baseUrl, workload, ...rest } = options;
  const template = templateOf(named, image);
  const server = SandboxServer.fromAuth({ apiKey, baseUrl });
  // One key for both tries: if the first did make a sandbox after all, the second answers with it.
  const fork = { ...rest, idempotencyKey: rest.idempotencyKey ?? newIdempotencyKey() };
  const shape = { workload, signal: rest.signal };
  if (workload) await server.ensureTemplate(template, shape);
  try {
    return await server.fork(template, id, fork);
  } catch (error) {
    if (!(error instanceof NotFoundError) || workload) throw error;
  }
  await server.ensureTemplate(template, shape);
  return server.fork(template, id, fork);
}

function templateOf(template: string | undefined, image: string | undefined): string {
  if (template && image && template !== image) {
    throw new AgentRunError("two templates were named", {
      code: "invalid_input",
      cause: `template is ${JSON.stringify(template)}, image is ${JSON.stringify(image)}`,
      remediation: "Give one of them; they mean the same.",
    });
  }
  return template || image || "python";
}
