/**
 * Builds templates whose files are on this machine. Needs Node's file system, and so is no part of the module that browsers load.
 *
 * ```ts
 * await buildTemplate("app", new Template().fromImage("python:3.12-slim").copy(".", "/app").run("pip install -r /app/requirements.txt"));
 * ```
 */

import { createHash } from "node:crypto";
import type { BuildEvent, ServerBuildStep } from "../builds.ts";
import type { Connection } from "../config.ts";
import { AgentRunError } from "../errors.ts";
import { SandboxServer } from "../server.ts";
import { type BuildStep, networkFromSpec, type Template, type TemplateSpec } from "../template.ts";
import type { Resources, TemplateInfo, Workload } from "../types.ts";
import { Context, type CopyFiles } from "./context.ts";
import { vcpuCount, wholeMiB } from "./quantity.ts";
import { packTar, type TarEntry } from "./tar.ts";

/** What happens to the files of a copy step before the server builds: they are read, and sent unless the server has them. */
export interface ContextEvent {
  kind: "context";
  atMs: number;
  /** Of the copy step, from 0. */
  step: number;
  source: string;
  /** `known`: the server had them. */
  state: "sending" | "sent" | "known";
  doneBytes: number;
  totalBytes: number;
}

/** Where a template is built, with which files, and who is told. */
export interface BuildTemplateOptions extends Connection {
  /** In place of `baseUrl` and `apiKey`. */
  server?: SandboxServer | undefined;
  /** The folder that copy steps are relative to. Nothing outside it is read. Default: the current one. */
  context?: string | undefined;
  /** What no copy step sees, in the words of `.dockerignore`. Default: that file in the context, where there is one. */
  ignoreFile?: string | undefined;
  /** Runs every step again, whatever the server has stored. */
  noCache?: boolean | undefined;
  /** Asks the registry again what the image's tag means. */
  pull?: boolean | undefined;
  /** Ends the build, unless others wait for it too. */
  signal?: AbortSignal | undefined;
  onEvent?: ((event: BuildEvent | ContextEvent) => void) | undefined;
}

/**
 * Reads the files of a template's copy steps, sends those that the server does not have, and has it build the template under this name.
 * What is stored of an earlier build is not done again. A template that had the name before is replaced; sandboxes of it run on.
 *
 * @param template - a builder, or what its `toSpec` gave
 * @throws build_failed with the step and what went wrong; not_found for an image that does not exist; invalid_input; canceled
 */
export async function buildTemplate(
  name: string,
  template: Template | TemplateSpec,
  options: BuildTemplateOptions = {},
): Promise<TemplateInfo> {
  const { context = ".", ignoreFile, noCache, pull, signal, onEvent = () => {} } = options;
  const server = options.server ?? SandboxServer.fromAuth(options);
  const spec = "toSpec" in template ? template.toSpec() : template;
  const shape = shapeOf(spec);
  const steps = spec.buildSteps ?? [];
  const onWarning = (text: string) => onEvent({ kind: "warning", atMs: Date.now(), text });
  const files = steps.some(({ type }) => type === "copy")
    ? await copiedFiles(steps, await Context.open(context, { ignoreFile, ignore: spec.ignore, onWarning }))
    : new Map<number, CopyFiles>();
  const sent: ServerBuildStep[] = [];
  for (const [index, step] of steps.entries()) {
    signal?.throwIfAborted();
    if (step.type !== "copy") sent.push(step);
    else {
      const { dest, entries } = files.get(index)!;
      const tell = (state: ContextEvent["state"], doneBytes: number, totalBytes: number) =>
        onEvent({ kind: "context", atMs: Date.now(), step: index, source: step.source, state, doneBytes, totalBytes });
      sent.push({ ...step, dest, context: await sendFiles(server, entries, tell, signal) });
    }
  }
  return server.createTemplate(name, { ...shape, steps: sent, noCache, pull, signal, onEvent });
}

/** All of them are found before the first byte is sent. */
async function copiedFiles(steps: readonly BuildStep[], context: Context): Promise<Map<number, CopyFiles>> {
  const files = new Map<number, CopyFiles>();
  for (const [index, step] of steps.entries()) {
    if (step.type === "copy") files.set(index, await context.files(step, index));
  }
  return files;
}

/** Reads the files twice: for their digest, and again only when the server does not have them. @returns the digest */
async function sendFiles(
  server: SandboxServer,
  entries: readonly TarEntry[],
  tell: (state: ContextEvent["state"], doneBytes: number, totalBytes: number) => void,
  signal: AbortSignal | undefined,
): Promise<string> {
  const hash = createHash("sha256");
  let total = 0;
  for await (const chunk of packTar(entries)) {
    signal?.throwIfAborted();
    hash.update(chunk);
    total += chunk.length;
  }
  const digest = `sha256:${hash.digest("hex")}`;
  if (await server.hasContext(digest, signal)) {
    tell("known", total, total);
    return digest;
  }
  tell("sending", 0, total);
  let done = 0;
  async function* counted() {
    for await (const chunk of packTar(entries)) {
      yield chunk;
      done += chunk.length;
      tell("sending", done, total);
    }
  }
  try {
    await server.putContext(digest, ReadableStream.from(counted()), signal);
  } catch (error) {
    throw ownErrorBehind(error);
  }
  tell("sent", total, total);
  return digest;
}

/** A file that cannot be read fails the request that carries it; the reason is inside. */
function ownErrorBehind(error: unknown): unknown {
  for (let at = error; at instanceof Error; at = at.cause) {
    if (at instanceof AgentRunError && at.code === "invalid_input") return at;
  }
  return error;
}

function shapeOf({ image, command, workload, resources, network, warm }: TemplateSpec) {
  return {
    image,
    ...(warm ? { warm } : {}),
    ...(network ? { network: networkFromSpec(network) } : {}),
    ...(resources ? { resources: resourcesOf(resources) } : {}),
    ...(command?.length || workload ? { workload: workloadOf(command, workload) } : {}),
  };
}

function workloadOf(
  command: readonly string[] = [],
  { entrypoint, ready, ...workload }: NonNullable<TemplateSpec["workload"]> = {},
): Workload {
  const start = command.length > 0 ? command : (workload.command ?? []);
  return { ...(entrypoint ? { entrypoint } : { command: start }), ...(ready ? { ready } : {}) };
}

function resourcesOf({ cpu, memory }: NonNullable<TemplateSpec["resources"]>): Resources {
  return { ...(cpu ? { vcpuCount: vcpuCount(cpu) } : {}), ...(memory ? { memSizeMiB: wholeMiB(memory) } : {}) };
}
