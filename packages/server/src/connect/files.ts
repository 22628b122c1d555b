import { create } from "@bufbuild/protobuf";
import { limits, MitosError } from "@mitos/protocol";
import { sandbox as pb } from "@mitos/protocol/proto";
import { z } from "zod";
import { check } from "../http/json.ts";
import { fileMode, path } from "../schemas.ts";
import { follow } from "../stream/follow.ts";
import { type Call, firstMessage, notOpen } from "./call.ts";

const fileModeDefault = 0o644;
const tarBytesMax = 64 * 1024 * 1024;

/** @throws invalid_input */
function checkPath(value: string, field = "path"): string {
  return check(z.object({ [field]: path }), { [field]: value })[field]!;
}

export async function* readFile(request: pb.ReadFileRequest, call: Call): AsyncGenerator<pb.Chunk> {
  const file = checkPath(request.path);
  const { data } = await call.runtime().readFile(file, { offset: 0, length: 0 }, call.signals.client);
  // One chunk behind, because the last one says that it is.
  let last: Uint8Array | undefined;
  for await (const piece of follow(data, call.signals)) {
    for (let start = 0; start < piece.length; start += limits.outputChunkBytesMax) {
      if (last) yield create(pb.ChunkSchema, { data: last });
      last = piece.subarray(start, start + limits.outputChunkBytesMax);
    }
  }
  yield create(pb.ChunkSchema, { data: last ?? new Uint8Array(0), eof: true });
}

export async function writeFile(requests: AsyncIterable<pb.WriteFileRequest>, call: Call): Promise<pb.WriteFileResult> {
  const { first, rest } = await firstMessage(requests);
  if (first.msg.case !== "open") throw notOpen();
  const { path: file, mode } = first.msg.value;
  const written = await call
    .runtime()
    .writeFile(checkPath(file), check(fileMode, mode) || fileModeDefault, contents(rest, "data"), call.signals.client);
  return create(pb.WriteFileResultSchema, { bytesWritten: BigInt(written) });
}

export async function upload(requests: AsyncIterable<pb.UploadRequest>, call: Call): Promise<pb.UploadResult> {
  const { first, rest } = await firstMessage(requests);
  if (first.msg.case !== "open") throw notOpen();
  const tar = contents(rest, "chunk", tarBytesMax);
  const written = await call.runtime().upload(checkPath(first.msg.value.dest, "dest"), tar, call.signals.client);
  return create(pb.UploadResultSchema, { bytesWritten: BigInt(written) });
}

async function* contents(
  requests: AsyncIterable<{ readonly msg: { readonly case?: string | undefined; readonly value?: unknown } }>,
  member: string,
  bytesMax = Number.POSITIVE_INFINITY,
): AsyncGenerator<Uint8Array> {
  let total = 0;
  for await (const { msg } of requests) {
    if (msg.case !== member || !(msg.value instanceof Uint8Array)) {
      throw new MitosError("invalid_input", { cause: `every message after the first must be ${member}` });
    }
    total += msg.value.length;
    if (total > bytesMax) throw new MitosError("body_too_large", { cause: `the limit is ${bytesMax} bytes` });
    if (msg.value.length > 0) yield msg.value;
  }
}

export function list(request: pb.ListRequest, call: Call): Promise<pb.ListResponse> {
  return call.runtime().list(checkPath(request.parent || "/", "parent"));
}

export function stat(request: pb.StatRequest, call: Call): Promise<pb.FileInfo> {
  return call.runtime().stat(checkPath(request.path));
}

export async function mkdir(request: pb.MkdirRequest, call: Call): Promise<pb.MkdirResponse> {
  await call.runtime().mkdir(checkPath(request.path));
  return create(pb.MkdirResponseSchema);
}

export async function remove(request: pb.RemoveRequest, call: Call): Promise<pb.RemoveResponse> {
  await call.runtime().remove(checkPath(request.path));
  return create(pb.RemoveResponseSchema);
}

export async function* archive(request: pb.ArchiveRequest, call: Call): AsyncGenerator<pb.Chunk> {
  if (request.direction !== pb.ArchiveRequest_Direction.DOWNLOAD) {
    throw new MitosError("invalid_input", { cause: "direction must be DOWNLOAD; send a tar with Upload" });
  }
  for await (const chunk of follow(call.runtime().archive(checkPath(request.path), call.signals.client), call.signals)) {
    yield chunk;
    if (chunk.eof) return;
  }
  yield create(pb.ChunkSchema, { eof: true });
}

export async function* watch(request: pb.WatchRequest, call: Call): AsyncGenerator<pb.FsEvent> {
  yield* follow(call.runtime().watch(checkPath(request.path), request.recursive, call.signals.client), call.signals);
}
