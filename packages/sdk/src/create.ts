import { isImageReference } from "@mitos/protocol";
import type { BuildEvent, BuildProgress } from "./builds.ts";
import type { Connection } from "./config.ts";
import { newIdempotencyKey } from "./config.ts";
import { AgentRunError, errorForCode, NotFoundError } from "./errors.ts";
import type { Sandbox } from "./sandbox.ts";
import { type ForkTemplateOptions, SandboxServer } from "./server.ts";
import type { Workload } from "./types.ts";

/** Which server, which template, and what the new sandbox is given. */
export interface CreateOptions extends Connection, ForkTemplateOptions {
  /** A template of the server, an image reference, or `python` (default), `node` or `base`. */
  template?: string | undefined;
  /** The name of `template` in the other SDKs. */
  image?: string | undefined;
  /** Default: a new one. */
  id?: string | undefined;
  /** Belongs to the template, which is built with it. */
  workload?: Workload | undefined;
  /** Told of what happens while the template is made, when it is not there yet: an image may have to be downloaded first. */
  onEvent?: ((event: BuildEvent) => void) | undefined;
}

/** What may stand beside the template's name. */
export type NamedCreateOptions = Omit<CreateOptions, "template" | "image">;

/**
 * A new sandbox, from a template that is built when the server does not have it yet: of an image of a registry (`python:3.12-slim`), or
 * `python`, `node` or `base`.
 *
 * @param first - the template's name, or all options
 * @param more - the other options, after a name
 * @throws not_found for a name that means nothing on the server, with the names that are close to it
 */
export async function create(first: string | CreateOptions = {}, more: NamedCreateOptions = {}): Promise<Sandbox> {
  const options: CreateOptions = typeof first === "string" ? { ...more, template: first } : first;
  const { template: named, image, id, apiKey, baseUrl, workload, onEvent, ...rest } = options;
  const progress = { onEvent, signal: rest.signal };
  const template = templateOf(named, image);
  const server = SandboxServer.fromAuth({ apiKey, baseUrl });
  // One key for both tries: if the first did make a sandbox after all, the second answers with it.
  const fork = { ...rest, idempotencyKey: rest.idempotencyKey ?? newIdempotencyKey() };
  if (workload) await server.ensureTemplate(template, { workload, ...progress });
  try {
    return await server.fork(template, id, fork);
  } catch (error) {
    if (!(error instanceof NotFoundError) || workload) throw error;
  }
  await ensureNamed(server, template, progress);
  return server.fork(template, id, fork);
}

/** Of what the name means on the server: a name that means nothing there is an error, which a new template's is not. */
async function ensureNamed(server: SandboxServer, name: string, progress: BuildProgress): Promise<void> {
  try {
    await server.ensureTemplate(name, { image: name, ...progress });
  } catch (error) {
    if (!(error instanceof NotFoundError) || isImageReference(name)) throw error;
    throw await withCloseNames(error, name, server);
  }
}

async function withCloseNames(error: NotFoundError, name: string, server: SandboxServer): Promise<AgentRunError> {
  const templates = await server.listTemplates().catch(() => []);
  const close = closeNames(name, [...hostNames, ...templates.map(({ id }) => id)]);
  if (close.length === 0) return error;
  const { code, errorCause: cause, remediation, context, status } = error;
  const remedy = `Did you mean ${close.join(" or ")}? ${remediation}`;
  return errorForCode(error.message, { code, cause, remediation: remedy.trim(), context, status });
}

const hostNames = ["python", "node", "base"];
const closeNamesMax = 3;

/** Those that differ by a few letters, or in which the name is, closest first. */
export function closeNames(name: string, known: readonly string[]): string[] {
  const asked = name.toLowerCase();
  return [...new Set(known)]
    .map((each) => ({ each, distance: editDistance(asked, each.toLowerCase()) }))
    .filter(({ each, distance }) => distance <= Math.max(1, Math.floor(asked.length / 3)) || isPartOf(asked, each.toLowerCase()))
    .sort((a, b) => a.distance - b.distance)
    .slice(0, closeNamesMax)
    .map(({ each }) => each);
}

/** `python3` and `nodejs` are far from `python` and `node` by letters alone. */
function isPartOf(one: string, other: string): boolean {
  const [short, long] = one.length < other.length ? [one, other] : [other, one];
  return short.length >= 3 && long.includes(short);
}

/** How many letters are to be put in, taken out or replaced (Levenshtein). */
function editDistance(from: string, to: string): number {
  let row = Array.from({ length: to.length + 1 }, (_, index) => index);
  for (let i = 1; i <= from.length; i++) {
    const above = row;
    row = [i];
    for (let j = 1; j <= to.length; j++) {
      row.push(Math.min(above[j]! + 1, row[j - 1]! + 1, above[j - 1]! + (from[i - 1] === to[j - 1] ? 0 : 1)));
    }
  }
  return row.at(-1)!;
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
