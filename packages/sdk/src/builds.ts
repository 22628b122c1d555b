import { type BuildStepJson, catalogue, type ErrorCode } from "@mitos/protocol";
import { AgentRunError, errorForCode, isObject } from "./errors.ts";
import type { HttpClient } from "./http.ts";
import { readNdjson } from "./ndjson.ts";
import type { BuildStep } from "./template.ts";

/** What happens while a template is built, or an image is pulled or pushed. */
export type BuildEvent = {
  /** By the server's clock. */
  atMs: number;
} & (
  | { kind: "phase"; phase: "resolve" | "pull" | "step" | "boot" | "start" | "warm" | "save"; detail: string }
  | {
      kind: "layer";
      digest: string;
      /** `shared`: it was there already. */
      state: "waiting" | "downloading" | "unpacking" | "uploading" | "done" | "shared";
      doneBytes: number;
      /** Compressed. */
      totalBytes: number;
    }
  | {
      kind: "step";
      /** From 0. */
      index: number;
      count: number;
      type: BuildStep["type"];
      label: string;
      state: "running" | "cached" | "done" | "failed";
      ms: number;
    }
  /** `step` is null for what the template's program and its warm code print. */
  | { kind: "log"; step: number | null; stream: "stdout" | "stderr"; text: string }
  | { kind: "warning"; text: string }
  | { kind: "done"; creationTimeMs: number | undefined }
  | { kind: "failed"; code: string; message: string; cause: string; remediation: string }
);

/** A step as a server takes it: the files of a copy step are named by their digest. */
export type ServerBuildStep = Exclude<BuildStep, { type: "copy" }> | (Extract<BuildStep, { type: "copy" }> & { context: string });

/** What is told while something is built, pulled or pushed, and how it is ended. */
export interface BuildProgress {
  /** Told of each event as it comes. */
  onEvent?: ((event: BuildEvent) => void) | undefined;
  /** Ends it, unless others wait for it too. */
  signal?: AbortSignal | undefined;
}

export function stepToWire(step: ServerBuildStep): BuildStepJson {
  if (step.type !== "env") return step;
  const { envName, envValue, expand } = step;
  return { type: "env", env_name: envName, env_value: envValue, ...(expand ? { env_expand: true } : {}) };
}

/**
 * Sends what takes long, and follows it where somebody wants to know how far it is.
 *
 * @param inStream - the member of the last event in which the answer is; undefined: the event itself is
 * @returns the answer, the same one with events and without
 * @throws what the server says of the failure; transport_error when its stream breaks off
 */
export async function postWithEvents(
  http: HttpClient,
  path: string,
  body: unknown,
  inStream: "template" | "image" | undefined,
  { onEvent, signal }: BuildProgress,
  headers: Readonly<Record<string, string>> = {},
): Promise<Record<string, unknown>> {
  if (!onEvent) return toObject(await http.post(path, body, headers, signal));
  const wanted = { "Content-Type": "application/json", ...headers, Accept: ndjson };
  const response = await http.send("POST", path, JSON.stringify(body), { headers: wanted, signal });
  // An older server knows no events and answers when it is done.
  if (!response.body || !response.headers.get("Content-Type")?.startsWith(ndjson)) return toObject(await http.json(path, response));
  try {
    for await (const row of readNdjson(response.body)) {
      const event = eventFromWire(row);
      if (!event) continue;
      onEvent(event);
      if (event.kind === "failed") throw failureOf(toObject(row.error));
      if (event.kind === "done") return toObject(inStream ? row[inStream] : row);
    }
  } catch (error) {
    throw http.failure(`POST ${path}`, error, signal);
  }
  throw brokenOff(path);
}

/** Events of a build, also of one that is over. With `follow` until it is. */
export async function* readEvents(
  http: HttpClient,
  path: string,
  signal: AbortSignal | undefined,
): AsyncGenerator<BuildEvent, void, undefined> {
  const response = await http.getStream(path, { headers: { Accept: ndjson }, signal });
  try {
    for await (const row of readNdjson(response)) {
      if (row.kind === undefined && isObject(row.error)) throw failureOf(row.error);
      const event = eventFromWire(row);
      if (event) yield event;
    }
  } catch (error) {
    throw http.failure(`GET ${path}`, error, signal);
  }
}

const ndjson = "application/x-ndjson";

function toObject(answer: unknown): Record<string, unknown> {
  return isObject(answer) ? answer : {};
}

/** Undefined for kinds that a newer server may have. */
export function eventFromWire(row: Readonly<Record<string, unknown>>): BuildEvent | undefined {
  const atMs = Number(row.at_ms ?? 0);
  const text = (member: string) => String(row[member] ?? "");
  const number = (member: string) => Number(row[member] ?? 0);
  switch (row.kind) {
    case "phase":
      return { atMs, kind: "phase", phase: text("phase") as "step", detail: text("detail") };
    case "layer": {
      const state = text("state") as "done";
      return { atMs, kind: "layer", digest: text("digest"), state, doneBytes: number("done_bytes"), totalBytes: number("total_bytes") };
    }
    case "step": {
      const [type, state] = [text("type") as BuildStep["type"], text("state") as "done"];
      return { atMs, kind: "step", index: number("index"), count: number("count"), type, label: text("label"), state, ms: number("ms") };
    }
    case "log": {
      const step = typeof row.step === "number" ? row.step : null;
      return { atMs, kind: "log", step, stream: row.stream === "stderr" ? "stderr" : "stdout", text: text("text") };
    }
    case "warning":
      return { atMs, kind: "warning", text: text("text") };
    case "done": {
      const time = isObject(row.template) ? row.template.creation_time_ms : row.creation_time_ms;
      return { atMs, kind: "done", creationTimeMs: time === undefined ? undefined : Number(time) };
    }
    case "failed":
      return { atMs, kind: "failed", ...partsOf(toObject(row.error)) };
    default:
      return undefined;
  }
}

function failureOf(error: Record<string, unknown>): AgentRunError {
  const { code, message, cause, remediation } = partsOf(error);
  const status = Object.hasOwn(catalogue, code) ? catalogue[code as ErrorCode].status : undefined;
  return errorForCode(message, { code, cause, remediation, context: toObject(error.context), status });
}

function partsOf(error: Record<string, unknown>) {
  const part = (member: string) => String(error[member] ?? "");
  return {
    code: part("code") || "internal",
    message: part("message") || catalogue.internal.message,
    cause: part("cause"),
    remediation: part("remediation"),
  };
}

function brokenOff(path: string): AgentRunError {
  return new AgentRunError("the server's events ended before it said how it went", {
    code: "transport_error",
    cause: `POST ${path}: the connection was closed, or the server was stopped`,
    remediation: "Ask for it again: what is stored already is not made twice. `mitos template logs` shows what the server has noted.",
  });
}
