import { type ContextJson, isId, type Unchecked } from "@mitos/protocol";
import { AgentRunError, isObject } from "./errors.ts";
import type { HttpClient } from "./http.ts";

/** One interpreter of a sandbox, with a state of its own. A fork's child has it with its variables; a pause keeps it. */
export interface CodeContext {
  /** Of a default one: its language. */
  id: string;
  /** `python`, `javascript` or `bash`. */
  language: string;
  /** Where it starts, also after a restart. */
  cwd: string;
  /** Made by the first run of its language without a context. */
  isDefault: boolean;
}

/** What a new interpreter runs, and where. */
export interface ContextOptions {
  /** `python` (default), `javascript` or `bash`. */
  language?: string | undefined;
  /** A directory of the sandbox. Default: /workspace where there is one. */
  cwd?: string | undefined;
  signal?: AbortSignal | undefined;
}

/** A context or its id. */
export type ContextRef = string | Pick<CodeContext, "id">;

/** The interpreters of one sandbox. */
export class ContextClient {
  readonly #http: HttpClient;
  readonly #path: string;

  constructor(http: HttpClient, sandboxId: string) {
    this.#http = http;
    this.#path = `/v1/sandboxes/${sandboxId}/contexts`;
  }

  async create({ language = "python", cwd, signal }: ContextOptions): Promise<CodeContext> {
    return contextFromWire(await this.#http.post(this.#path, { language, cwd }, undefined, signal));
  }

  async list(): Promise<CodeContext[]> {
    const rows = await this.#http.get(this.#path);
    return (Array.isArray(rows) ? rows : []).map(contextFromWire);
  }

  async restart(context: ContextRef): Promise<CodeContext> {
    return contextFromWire(await this.#http.post(`${this.#path}/${contextId(context)}/restart`, {}));
  }

  async remove(context: ContextRef): Promise<void> {
    await this.#http.del(`${this.#path}/${contextId(context)}`);
  }
}

/** Becomes part of a path and of a header. @throws invalid_input */
export function contextId(context: ContextRef): string {
  const id = typeof context === "string" ? context : context.id;
  if (isId(id)) return id;
  throw new AgentRunError("the context is not valid", {
    code: "invalid_input",
    cause: `${JSON.stringify(id)} is not the id of a context`,
    remediation: "Pass what createContext or listContexts gave, or the name of a language for its default context.",
  });
}

function contextFromWire(wire: unknown): CodeContext {
  const { id, language, cwd, default: isDefault }: Unchecked<ContextJson> = isObject(wire) ? wire : {};
  return { id: String(id ?? ""), language: String(language ?? ""), cwd: String(cwd ?? ""), isDefault: isDefault === true };
}
