/**
 * The tools that a model gets for a sandbox, written down once: every adapter translates this table into its framework's form, so that a
 * model sees the same names, words, schemas, results and errors whichever framework carries them.
 */

import { catalogue, limits } from "@mitos/protocol";
import { AgentRunError, isObject, NotFoundError } from "../errors.ts";
import type { Sandbox } from "../sandbox.ts";
import { type ExecutionOutcome, mapExecute, mapFilesRead, mapFilesWrite, mapRunCode, type OpsTarget } from "./mapping.ts";

/** One argument of a tool. */
export interface ToolProperty {
  type: "string" | "integer";
  description: string;
  /** An argument that has one may be left out. */
  default?: string | number;
  minimum?: number;
  maximum?: number;
}

/** JSON Schema of a tool's arguments. */
export interface ToolInputSchema {
  type: "object";
  properties: Record<string, ToolProperty>;
  required: string[];
  additionalProperties: false;
}

/** An image, as base64 without a prefix. */
export interface ToolImage {
  mediaType: string;
  base64: string;
}

/** A result as a model gets it. */
export interface ToolOutput {
  /** At most `modelTextCharsMax` characters, without the images. */
  text: string;
  images: ToolImage[];
}

/** How one call is carried. */
export interface ToolCallOptions {
  /** Aborting it kills the running command, or interrupts the running code. A fork is finished. */
  signal?: AbortSignal | undefined;
}

/** A tool without a sandbox. */
export interface ToolDefinition<Target = OpsTarget> {
  name: string;
  description: string;
  inputSchema: ToolInputSchema;
  /** Checks the arguments in full, then runs. @returns all of the result as plain data @throws invalid_input, and what the operation throws */
  call(target: Target, input: unknown, options?: ToolCallOptions): Promise<unknown>;
  /** What of such a result a model gets. */
  show(value: unknown): ToolOutput;
}

/** The table. `list_files` is a method of the adapters, not a tool: a model has `ls`. */
export const toolDefinitions: readonly ToolDefinition[] = [
  defineTool({
    name: "run_command",
    description:
      "Runs a shell command in the sandbox (working directory /workspace) and returns its stdout, stderr and exit_code. " +
      "A command that is still running when its timeout is over is killed.",
    properties: {
      command: { type: "string", description: "A line for /bin/sh." },
      timeout: { type: "integer", description: "Seconds until it is killed.", default: 30, minimum: 1 },
    },
    run: (target: OpsTarget, { command, timeout }, { signal }) => mapExecute(target, command, timeout, signal),
    show: asJson,
  }),
  defineTool({
    name: "read_file",
    description: "Returns the content of a text file of the sandbox.",
    properties: { path: { type: "string", description: "Path of the file, best from the root." } },
    run: (target: OpsTarget, { path }, { signal }) => mapFilesRead(target, path, signal),
    show: asText,
  }),
  defineTool({
    name: "write_file",
    description: "Creates or replaces a text file of the sandbox, with the folders above it.",
    properties: {
      path: { type: "string", description: "Path of the file, best from the root." },
      content: { type: "string", description: "All of its new content." },
    },
    run: (target: OpsTarget, { path, content }, { signal }) => mapFilesWrite(target, path, content, signal),
    show: ({ path }) => asText(`wrote ${path}`),
  }),
  defineTool({
    name: "run_code",
    description:
      "Runs code in the sandbox's live interpreter, which keeps its variables from call to call, and returns its output, the value of the " +
      "last expression and what it displays. An exception is part of the result.",
    properties: {
      code: { type: "string", description: "The code." },
      language: { type: "string", description: "python, javascript or bash.", default: "python" },
    },
    run: (target: OpsTarget, { code, language }, { signal }) => mapRunCode(target, code, language, undefined, signal),
    show: showExecution,
  }),
];

/** Offered to a model only when its program asks for it: a child costs memory, and somebody has to end it. */
const forkDefinition = defineTool({
  name: "fork",
  description:
    "Forks the running sandbox: each child continues from its exact state, files, memory and running processes, and then goes its own way. " +
    "Returns the ids of the children, to be passed as `sandbox` to the other tools.",
  properties: { count: { type: "integer", description: "How many children.", default: 1, minimum: 1, maximum: limits.forkCountMax } },
  async run({ sandbox, family }: Member, { count }) {
    const fork = sandbox.fork(count);
    family.forks.add(fork);
    try {
      const children = await fork;
      for (const child of children) family.members.set(child.id, child);
      return { children: children.map(({ id }) => id) };
    } finally {
      family.forks.delete(fork);
    }
  },
  show: asJson,
});

/** What a model is offered. */
export interface ToolOptions {
  /**
   * Offers a fifth tool, `fork`, and gives the others an argument `sandbox`, with which a model chooses between the sandbox and the children
   * that it has made; no other sandbox can be named. Default: false.
   */
  forkTool?: boolean | undefined;
}

/** A tool with its sandbox. */
export interface BoundTool {
  name: string;
  description: string;
  inputSchema: ToolInputSchema;
  call(input: unknown, options?: ToolCallOptions): Promise<unknown>;
  show(value: unknown): ToolOutput;
}

/** The tools of one sandbox, and what their forks leave. */
export interface BoundTools {
  readonly tools: readonly BoundTool[];
  /** Ends the children that the fork tool has made, or is making. */
  endChildren(): Promise<void>;
}

/** Binds the table to a sandbox. */
export function bindTools(sandbox: Sandbox, { forkTool = false }: ToolOptions = {}): BoundTools {
  const family: Family = { members: new Map([[sandbox.id, sandbox]]), forks: new Set() };
  const tools = forkTool
    ? [...toolDefinitions.map(ofMember), forkDefinition].map((definition) => bindToFamily(definition, sandbox, family))
    : toolDefinitions.map((definition) => ({
        ...definition,
        call: (input: unknown, options?: ToolCallOptions) => definition.call(sandbox, input, options),
      }));
  return {
    tools,
    async endChildren() {
      await Promise.allSettled(family.forks);
      const children = [...family.members.values()].filter((member) => member !== sandbox);
      for (const { id } of children) family.members.delete(id);
      await Promise.all(children.map((child) => child[Symbol.asyncDispose]()));
    },
  };
}

/** The sandboxes that one model may name. */
interface Family {
  readonly members: Map<string, Sandbox>;
  /** Those under way. */
  readonly forks: Set<Promise<unknown>>;
}

/** The one that a call is for. */
interface Member {
  sandbox: Sandbox;
  family: Family;
}

function ofMember(definition: ToolDefinition): ToolDefinition<Member> {
  return { ...definition, call: ({ sandbox }, input, options) => definition.call(sandbox, input, options) };
}

function bindToFamily(definition: ToolDefinition<Member>, first: Sandbox, family: Family): BoundTool {
  const inputSchema = withSandboxArgument(definition.inputSchema, first.id);
  return {
    ...definition,
    inputSchema,
    async call(input, options) {
      const { sandbox, ...rest } = checkToolInput(definition.name, inputSchema, input);
      return definition.call({ sandbox: memberOf(family, String(sandbox)), family }, rest, options);
    },
  };
}

function withSandboxArgument(schema: ToolInputSchema, id: string): ToolInputSchema {
  const sandbox: ToolProperty = {
    type: "string",
    description: "Id of the sandbox: the first one, or one that fork returned.",
    default: id,
  };
  return { ...schema, properties: { ...schema.properties, sandbox } };
}

function memberOf({ members }: Family, id: string): Sandbox {
  const member = members.get(id);
  if (member) return member;
  throw new NotFoundError("no such sandbox", {
    code: "not_found",
    cause: `known here are ${[...members.keys()].join(", ")}`,
    remediation: "Pass an id that fork has returned, or leave `sandbox` out for the first one.",
    status: catalogue.not_found.status,
  });
}

interface ToolSource<Target, Properties extends Record<string, ToolProperty>, Value> {
  name: string;
  description: string;
  properties: Properties;
  run(target: Target, input: InputOf<Properties>, options: ToolCallOptions): Promise<Value>;
  show(value: Value): ToolOutput;
}

type InputOf<Properties extends Record<string, ToolProperty>> = {
  readonly [Name in keyof Properties]: Properties[Name]["type"] extends "integer" ? number : string;
};

/** A row of the table, or of a table of one's own: the schema follows from the properties, and the arguments are checked by it. */
export function defineTool<Target, const Properties extends Record<string, ToolProperty>, Value>({
  name,
  description,
  properties,
  run,
  show,
}: ToolSource<Target, Properties, Value>): ToolDefinition<Target> {
  const inputSchema: ToolInputSchema = {
    type: "object",
    properties,
    required: Object.keys(properties).filter((key) => properties[key]!.default === undefined),
    additionalProperties: false,
  };
  return {
    name,
    description,
    inputSchema,
    call: async (target, input, options = {}) => run(target, checkToolInput(name, inputSchema, input) as InputOf<Properties>, options),
    show: (value) => show(value as Value),
  };
}

/** The arguments with their defaults. @throws invalid_input, which names the argument and never its value */
export function checkToolInput(tool: string, { properties, required }: ToolInputSchema, input: unknown): Record<string, string | number> {
  if (!isObject(input)) throw invalidToolInput(`${tool} takes one object with its arguments`);
  const unknown = Object.keys(input).filter((name) => !Object.hasOwn(properties, name));
  if (unknown.length > 0) {
    const names = unknown.slice(0, 5).map((name) => `\`${name.slice(0, 50)}\``);
    throw invalidToolInput(`${tool} knows no argument ${names.join(", ")}; it takes ${Object.keys(properties).join(", ")}`);
  }
  const missing = required.filter((name) => input[name] === undefined);
  if (missing.length > 0) throw invalidToolInput(`${tool} needs the argument \`${missing.join("`, `")}\``);
  const checked = Object.entries(properties).map(([name, property]) => {
    const value = input[name] === undefined ? property.default : input[name];
    return [name, checkArgument(`\`${name}\` of ${tool}`, property, value)] as const;
  });
  return Object.fromEntries(checked);
}

function checkArgument(what: string, { type, minimum = -Infinity, maximum = Infinity }: ToolProperty, value: unknown): string | number {
  if (type === "string") {
    if (typeof value === "string") return value;
    throw invalidToolInput(`${what} is not a string`);
  }
  if (typeof value !== "number" || !Number.isSafeInteger(value)) throw invalidToolInput(`${what} is not a whole number`);
  if (value < minimum || value > maximum) {
    throw invalidToolInput(maximum === Infinity ? `${what} is less than ${minimum}` : `${what} is not from ${minimum} to ${maximum}`);
  }
  return value;
}

/** The error for arguments that are wrong; a framework tells its model the text of it. */
export function invalidToolInput(cause: string): AgentRunError {
  return new AgentRunError("the tool's input is not valid", {
    code: "invalid_input",
    cause,
    remediation: catalogue.invalid_input.remediation,
    status: catalogue.invalid_input.status,
  });
}

/** An error as a model should read it: code, what happened, what to do; never a stack trace. */
export function toolErrorText(error: unknown): string {
  if (error instanceof AgentRunError) return error.toString();
  return error instanceof Error ? error.message : String(error);
}

/** What a model is shown of one result; a program gets all of it. */
export const modelTextCharsMax = 100_000;
/** Larger images are refused by the providers of models. */
const imageCharsMax = 5_000_000;
const imagesMax = 8;
/** What a kernel sends as base64. */
const imageTypes = ["image/png", "image/jpeg", "image/gif", "image/webp"];
const binaryTypes = [...imageTypes, "application/pdf"];

/** A result as JSON text, shortened for a model. */
export function asJson(value: unknown): ToolOutput {
  return asText(JSON.stringify(value));
}

function asText(text: string): ToolOutput {
  return { text: shorten(text), images: [] };
}

/** Images are taken out of the text and attached. */
function showExecution(execution: ExecutionOutcome): ToolOutput {
  const images: ToolImage[] = [];
  const readable = (mediaType: string, content: string) => {
    if (!binaryTypes.includes(mediaType)) return content;
    if (!imageTypes.includes(mediaType) || content.length > imageCharsMax || images.length === imagesMax) {
      return "(left out: write it to a file)";
    }
    images.push({ mediaType, base64: content });
    return `(image ${images.length}, attached)`;
  };
  const results = execution.results.map(({ data, is_main_result }) => ({
    data: Object.fromEntries(Object.entries(data).map(([type, content]) => [type, readable(type, content)])),
    is_main_result,
  }));
  return { text: shorten(JSON.stringify({ ...execution, results })), images };
}

/** Keeps the start, which says what it is, and the end, which says how it went. */
function shorten(text: string): string {
  if (text.length <= modelTextCharsMax) return text;
  const note = (left: number) => `\n[… ${left} characters left out: write the output to a file and read parts of it …]\n`;
  const kept = modelTextCharsMax - note(text.length).length;
  const head = Math.floor(kept / 2);
  return text.slice(0, head) + note(text.length - kept) + text.slice(text.length - (kept - head));
}
