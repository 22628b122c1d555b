/**
 * One published client sends `workingDir` for `cwd`, and `env` as an object. Both are read as what they mean, in the JSON of the one message
 * of an ExecStream request.
 */

import { envelope, envelopeHeaderBytes } from "../envelope.ts";

/** Larger messages pass unread: no request with an alias is near this size. */
const readBytesMax = 4 * 1024 * 1024;

/** @param messages - in pieces that end where a message ends */
export async function* withExecAliases(messages: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  let isFirst = true;
  for await (const piece of messages) {
    if (isFirst) yield* renamed(Buffer.from(piece.buffer, piece.byteOffset, piece.byteLength));
    else yield piece;
    isFirst = false;
  }
}

function* renamed(piece: Buffer): Generator<Uint8Array> {
  const end = piece.length < envelopeHeaderBytes ? 0 : envelopeHeaderBytes + piece.readUInt32BE(1);
  if (end === 0 || end > piece.length || end > readBytesMax || piece[0] !== 0) return yield piece;
  yield envelope(renameExecAliases(piece.subarray(envelopeHeaderBytes, end)));
  if (piece.length > end) yield piece.subarray(end);
}

/** The same of the message itself. */
export function renameExecAliases(payload: Buffer): Buffer {
  let message: unknown;
  try {
    message = JSON.parse(payload.toString());
  } catch {
    return payload; // the decoder's error is the right one
  }
  if (typeof message !== "object" || message === null || Array.isArray(message)) return payload;
  const { workingDir, ...rest } = message as Record<string, unknown>;
  const vars = rest.env;
  if (workingDir === undefined && !isPlainObject(vars)) return payload;
  if (typeof workingDir === "string" && rest.cwd === undefined) rest.cwd = workingDir;
  if (isPlainObject(vars)) rest.env = Object.entries(vars).map(([key, value]) => ({ key, value }));
  return Buffer.from(JSON.stringify(rest));
}

function isPlainObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
