/**
 * A message that does not parse is the client's fault. connect-es says so of JSON; of protobuf it says `internal`, which would be ours:
 * here that answer is put right before it leaves.
 */

import { Code } from "@connectrpc/connect";
import { createAsyncIterable, type UniversalServerResponse } from "@connectrpc/connect/protocol";
import { codeToHttpStatus } from "@connectrpc/connect/protocol-connect";
import { envelope, envelopeHeaderBytes, flagEndOfStream } from "../envelope.ts";

const ours = /"code":"internal"(?=,"message":"parse binary: )/;
const theirs = '"code":"invalid_argument"';

export async function blamingClient(answer: UniversalServerResponse): Promise<UniversalServerResponse> {
  const { status, header, body } = answer;
  if (!body) return answer;
  if (header?.get("content-type")?.startsWith("application/connect+")) return { ...answer, body: withEndPutRight(body) };
  if (status !== codeToHttpStatus(Code.Internal)) return answer;
  const chunks: Uint8Array[] = [];
  for await (const chunk of body) chunks.push(chunk);
  const text = Buffer.concat(chunks).toString();
  if (!ours.test(text)) return { ...answer, body: createAsyncIterable([Buffer.from(text)]) };
  const corrected = Buffer.from(text.replace(ours, theirs));
  header?.set("content-length", String(corrected.byteLength));
  return { ...answer, status: codeToHttpStatus(Code.InvalidArgument), body: createAsyncIterable([corrected]) };
}

/** Every chunk is one envelope. */
async function* withEndPutRight(body: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  for await (const chunk of body) yield chunk[0] === flagEndOfStream ? endPutRight(chunk) : chunk;
}

function endPutRight(end: Uint8Array): Uint8Array {
  const text = Buffer.from(end.subarray(envelopeHeaderBytes)).toString();
  return ours.test(text) ? envelope(Buffer.from(text.replace(ours, theirs)), flagEndOfStream) : end;
}
