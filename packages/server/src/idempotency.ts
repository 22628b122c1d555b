import type { IdempotencyStore } from "@mitos/engine";
import { MitosError, type SandboxId } from "@mitos/protocol";
import type { FastifyRequest } from "fastify";

/** What a repeated request is answered from: the resource's id and the answer's body. */
export interface Created<Answer extends object> {
  readonly resource: string;
  readonly answer: Answer;
}

/** What a request with a key asks for. */
export interface Creation<Answer extends object> {
  /** The sandboxes that it makes. None for a template: making it again finds the first. */
  readonly ids: readonly SandboxId[];
  /** The answer for an earlier resource, undefined when it is gone. */
  find(resource: string): Answer | undefined;
  create(): Promise<Created<Answer>>;
}

const keyLengthMax = 1024;

/** @throws invalid_input */
export function idempotencyKey(request: FastifyRequest): string | undefined {
  const key = request.headers["idempotency-key"];
  if (typeof key !== "string" || key === "") return undefined;
  // Whatever else a header can hold is a key.
  if (key.length > keyLengthMax)
    throw new MitosError("invalid_input", { cause: `Idempotency-Key has more than ${keyLengthMax} characters` });
  return key;
}

/**
 * Runs `create` once per key: a repetition is answered with the first resource while that exists, and creates anew when it does not.
 *
 * @throws conflict while the first request with this key is under way
 */
export async function once<Answer extends object>(
  store: IdempotencyStore,
  kind: "template" | "fork",
  key: string | undefined,
  { ids, find, create }: Creation<Answer>,
): Promise<Answer> {
  if (key === undefined) return (await create()).answer;
  let begun = store.begin(kind, key, ids);
  if (!begun.first) {
    const earlier = find(begun.resource);
    if (earlier) return earlier;
    store.release(kind, key);
    begun = store.begin(kind, key, ids);
    if (!begun.first) throw new MitosError("conflict", { cause: "another request with this Idempotency-Key is under way" });
  }
  let created: Created<Answer>;
  try {
    created = await create();
  } catch (error) {
    store.release(kind, key);
    throw error;
  }
  store.complete(kind, key, created.resource);
  return created.answer;
}
