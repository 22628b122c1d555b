/**
 * One published client sends `workingDir` for `cwd`, and `env` as an object. Both are read as what they mean, in the JSON of the one message
 * of an ExecStream request.
 */

const envelopeHeaderBytes = 5;
/** Larger messages pass unread: no request with an alias is near this size. */
const readBytesMax = 4 * 1024 * 1024;

export async function* withExecAliases(body: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  let head = Buffer.alloc(0);
  let passing = false;
  for await (const chunk of body) {
    if (passing) {
      yield chunk;
      continue;
    }
    head = Buffer.concat([head, chunk]);
    if (head.length < envelopeHeaderBytes) continue;
    const end = envelopeHeaderBytes + head.readUInt32BE(1);
    const readable = head[0] === 0 && end <= readBytesMax;
    if (readable && head.length < end) continue;
    passing = true;
    if (!readable) {
      yield head;
      continue;
    }
    yield envelope(rename(head.subarray(envelopeHeaderBytes, end)));
    if (head.length > end) yield head.subarray(end);
  }
  if (!passing && head.length > 0) yield head;
}

function rename(payload: Buffer): Buffer {
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

function envelope(payload: Buffer): Buffer {
  const head = Buffer.alloc(envelopeHeaderBytes);
  head.writeUInt32BE(payload.length, 1);
  return Buffer.concat([head, payload]);
}
