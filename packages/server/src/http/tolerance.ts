/**
 * What bodies may look like because the server that published clients were written against decoded them with Go's `encoding/json`: keys in
 * any case, null for what is not said, and bytes behind the first value.
 */

import { z } from "zod";

/**
 * The value with its keys as the schema spells them, and without nulls where the schema knows none. An exact key wins over one in another
 * case. Only members that the schema names are touched: the keys of a map are the caller's own.
 */
export function tolerate(schema: z.ZodType, value: unknown): unknown {
  const inner = unwrap(schema);
  if (inner instanceof z.ZodArray && Array.isArray(value)) return value.map((item) => tolerate(inner.element as z.ZodType, item));
  if (!(inner instanceof z.ZodObject) || typeof value !== "object" || value === null || Array.isArray(value)) return value;
  const shape = inner.shape as Record<string, z.ZodType>;
  const spelling = new Map(Object.keys(shape).map((key) => [key.toLowerCase(), key]));
  const result = new Map<string, unknown>();
  for (const [key, member] of Object.entries(value)) {
    const known = Object.hasOwn(shape, key) ? key : spelling.get(key.toLowerCase());
    if (known === undefined) {
      result.set(key, member);
      continue;
    }
    if (known !== key && Object.hasOwn(value, known)) continue;
    const part = shape[known]!;
    if (member === null && !part.safeParse(null).success) continue;
    result.set(known, tolerate(part, member));
  }
  return Object.fromEntries(result);
}

/** What is inside of optional, nullable, default and transformed. */
function unwrap(schema: z.ZodType): z.ZodType {
  if (schema instanceof z.ZodOptional || schema instanceof z.ZodNullable || schema instanceof z.ZodDefault) {
    return unwrap(schema.unwrap() as z.ZodType);
  }
  if (schema instanceof z.ZodPipe) return unwrap(schema.in as z.ZodType);
  return schema;
}

/** The text of the object that `text` begins with; all of it when it begins with something else or the object does not end. */
export function firstObject(text: string): string {
  const start = text.search(/[^ \t\r\n]/);
  if (text[start] !== "{") return text;
  let depth = 0;
  let inString = false;
  for (let at = start; at < text.length; at += 1) {
    const character = text[at];
    if (inString) {
      if (character === "\\") at += 1;
      else if (character === '"') inString = false;
    } else if (character === '"') inString = true;
    else if (character === "{" || character === "[") depth += 1;
    else if (character === "}" || character === "]") {
      depth -= 1;
      if (depth === 0) return text.slice(start, at + 1);
    }
  }
  return text;
}
