import type { Connection } from "./config.ts";
import { newIdempotencyKey } from "./config.ts";
import { NotFoundError } from "./errors.ts";
import type { Sandbox } from "./sandbox.ts";
import { type ForkTemplateOptions, SandboxServer } from "./server.ts";
import type { Workload } from "./types.ts";

/** Which server, which template, and what the new sandbox is given. */
export interface CreateOptions extends Connection, ForkTemplateOptions {
  /** Default: `python`. */
  template?: string | undefined;
  /** Default: a new one. */
  id?: string | undefined;
  /** Belongs to the template, which is built with it. */
  workload?: Workload | undefined;
}

/**
 * A new sandbox, from a template that is built when the server does not have it yet.
 *
 * @param options - or only the template's name
 */
export async function create(options: CreateOptions | string = {}): Promise<Sandbox> {
  const { template = "python", id, apiKey, baseUrl, workload, ...rest } = typeof options === "string" ? { template: options } : options;
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
