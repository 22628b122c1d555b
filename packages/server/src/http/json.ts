import { limits, MitosError } from "@mitos/protocol";
import type { FastifyRequest } from "fastify";
import type { z } from "zod";
import { firstObject, tolerate } from "./tolerance.ts";

const bodyTimeoutMs = 60_000;

/**
 * Reads and checks the whole body before anything happens.
 *
 * @param trailing - whether bytes behind the object are an error or, on the routes that never read them, nothing
 * @throws body_too_large; rate_limited; invalid_json; invalid_input, naming the first member that is wrong
 */
export async function readJson<Schema extends z.ZodType>(
  request: FastifyRequest,
  schema: Schema,
  trailing: "refused" | "ignored" = "refused",
): Promise<z.infer<Schema>> {
  return check(schema, tolerate(schema, parseObject(await readBody(request), trailing)));
}

/** @throws invalid_input */
export function check<Schema extends z.ZodType>(schema: Schema, value: unknown): z.infer<Schema> {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  const path = issue?.path.map(String).join(".");
  throw new MitosError("invalid_input", { cause: `${path ? `${path}: ` : ""}${issue?.message ?? "invalid"}` });
}

async function readBody(request: FastifyRequest): Promise<Buffer> {
  const tooLarge = () => new MitosError("body_too_large", { cause: `the limit is ${limits.jsonBodyBytesMax} bytes` });
  if (Number(request.headers["content-length"] ?? 0) > limits.jsonBodyBytesMax) throw tooLarge();
  const chunks: Buffer[] = [];
  let length = 0;
  const held = request.holdBody();
  const deadline = setTimeout(() => request.raw.destroy(new Error("the request body took too long")), bodyTimeoutMs);
  try {
    // The answer is sent on the same connection, so an early end must not destroy the request.
    for await (const chunk of request.raw.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
      length += chunk.length;
      if (length > limits.jsonBodyBytesMax) throw tooLarge();
      held.add(chunk.length);
      chunks.push(chunk);
    }
  } finally {
    clearTimeout(deadline);
  }
  return Buffer.concat(chunks, length);
}

function parseObject(body: Buffer, trailing: "refused" | "ignored"): object {
  let value: unknown;
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(body);
    value = JSON.parse(trailing === "ignored" ? firstObject(text) : text);
  } catch {
    // The parser's message would quote the body, which may hold secrets.
    throw new MitosError("invalid_json", { cause: body.length === 0 ? "the body is empty" : "the body does not parse" });
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new MitosError("invalid_json", { cause: "the body must be one JSON object" });
  }
  return value;
}
