import type { CallToolResult, JSONObject, Tool as ToolDescription } from "@modelcontextprotocol/server";
import { z } from "zod";
import type { Backend } from "../backend.ts";
import type { CreatedSandboxes } from "../created-sandboxes.ts";
import { ToolError } from "../errors.ts";
import type { Progress } from "../progress.ts";

/** What a tool is given besides its arguments. */
export interface Call {
  readonly backend: Backend;
  readonly created: CreatedSandboxes;
  /** Fires when the client cancels the call or goes away. */
  readonly signal: AbortSignal;
  readonly progress: Progress;
}

/** One tool, ready to be listed and called. */
export interface Tool {
  readonly description: ToolDescription;
  /** @throws ToolError and what the SDK throws */
  call(args: Record<string, unknown>, call: Call): Promise<CallToolResult>;
}

interface Definition<Shape extends z.ZodRawShape> {
  readonly name: string;
  readonly title: string;
  /** For the model: what it does, what it answers, when to use it. */
  readonly description: string;
  readonly arguments: Shape;
  /** The shape of `structuredContent`, which the text then repeats as JSON for clients that know only text. */
  readonly output?: z.ZodObject;
  /** What a client may assume before it asks its user. */
  readonly hints: Hints;
  call(args: z.output<z.ZodObject<Shape>>, call: Call): Promise<CallToolResult>;
}

interface Hints {
  /** It changes nothing. */
  readonly readOnly?: boolean;
  /** It may overwrite or end something that was there. Default: false */
  readonly destructive?: boolean;
  /** Calling it again with the same arguments changes nothing more. */
  readonly idempotent?: boolean;
  /** It may reach beyond the Mitos server, as far as the rules of the sandbox allow. Default: false */
  readonly openWorld?: boolean;
}

export function defineTool<Shape extends z.ZodRawShape>(definition: Definition<Shape>): Tool {
  const { name, title, description, hints, output } = definition;
  const schema = z.strictObject(definition.arguments);
  return {
    description: {
      name,
      title,
      description,
      inputSchema: toJsonSchema(schema, "input"),
      ...(output ? { outputSchema: toJsonSchema(output, "output") } : {}),
      annotations: {
        title,
        readOnlyHint: hints.readOnly ?? false,
        destructiveHint: hints.destructive ?? false,
        idempotentHint: hints.idempotent ?? hints.readOnly ?? false,
        openWorldHint: hints.openWorld ?? false,
      },
    },
    call: (args, call) => definition.call(checked(name, schema, args), call),
  };
}

/** Without `$schema`: clients whose validator knows another dialect refuse the whole tool for it. */
function toJsonSchema(schema: z.ZodObject, io: "input" | "output"): ToolDescription["inputSchema"] {
  const { $schema: _dialect, ...rest } = z.toJSONSchema(schema, { io });
  return rest as JSONObject & { type: "object" };
}

/** @throws missing_required_argument, invalid_arguments */
function checked<Schema extends z.ZodObject>(tool: string, schema: Schema, args: Record<string, unknown>): z.output<Schema> {
  const { data, error } = schema.safeParse(args);
  if (!error) return data as z.output<Schema>;
  const missing = error.issues.filter(
    ({ path, code }) => path.length === 1 && code === "invalid_type" && args[String(path[0])] === undefined,
  );
  const known = `${tool} takes ${Object.keys(schema.shape).join(", ") || "no arguments"}.`;
  if (missing.length > 0) {
    const names = missing.map(({ path }) => path[0]).join(", ");
    throw new ToolError("missing_required_argument", `${tool} needs ${names}`, `Call it again with ${names}. ${known}`);
  }
  const reasons = error.issues.map(({ path, message }) => (path.length > 0 ? `${path.join(".")}: ${message}` : message));
  throw new ToolError("invalid_arguments", reasons.join("; "), `Correct the arguments and call it again. ${known}`);
}

/** Arguments that several tools take. */
export const sandboxId = z
  .string()
  .regex(/^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$/, "not a sandbox id (1 to 64 letters, digits, _ and -)")
  .describe("Id of the sandbox, as sandbox_create or sandbox_fork answered it.");

export function timeoutSeconds(max: number, description: string) {
  return z.int().min(1).max(max).optional().describe(description);
}
