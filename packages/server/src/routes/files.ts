/** Raw bytes of one file, of any size, streamed both ways with the memory of one chunk; and what `sandbox.v1` has no RPC for. */

import type { ServerResponse } from "node:http";
import { MitosError } from "@mitos/protocol";
import type { FastifyInstance } from "fastify";
import { z } from "zod";
import { audited } from "../audit.ts";
import type { ServerContext } from "../context.ts";
import { bodyOf } from "../http/body.ts";
import { check, readJson } from "../http/json.ts";
import { requestSignal } from "../http/signal.ts";
import { path, sandboxId } from "../schemas.ts";
import { sendAll } from "../stream/send-all.ts";

const params = z.object({ id: sandboxId });
const readQuery = z.object({ path });
const writeQuery = z.object({
  path,
  mode: z
    .string()
    .regex(/^[0-7]{1,4}$/, "must be an octal mode such as 644")
    .default("644"),
});

const renameBody = z.object({ from: path, to: path });

export function fileRoutes(app: FastifyInstance, context: ServerContext): void {
  app.head("/v1/sandboxes/:id/files", async (request, reply) => {
    const { id } = check(params, request.params);
    const query = check(readQuery, request.query);
    const info = await context.engineFor(request.raw).runtime(id).stat(query.path);
    if (info.isDir) throw isDirectory(query.path);
    reply.raw.writeHead(200, { ...fileHeaders(info.modifiedAtUnix), "content-length": String(info.size) }).end();
    return reply.hijack();
  });

  app.get("/v1/sandboxes/:id/files", { exposeHeadRoute: false }, async (request, reply) => {
    const { id } = check(params, request.params);
    const query = check(readQuery, request.query);
    let ok = false;
    let sent = 0;
    try {
      const runtime = context.engineFor(request.raw).runtime(id);
      using client = requestSignal(request, reply, context.shutdown);
      const range = parseRange(request.headers.range, async () => Number((await runtime.stat(query.path)).size));
      const { offset, length, partial } = await range;
      const { info, data } = await runtime.readFile(query.path, { offset, length }, client.signal);
      if (info.isDir) throw isDirectory(query.path);
      const size = Number(info.size);
      if (partial && offset >= size) return reply.code(416).header("Content-Range", `bytes */${size}`).send(rangeError(size).toEnvelope());
      const end = length === 0 ? size : Math.min(offset + length, size);
      // Files such as those of /proc say 0 and have content.
      const promised = size === 0 ? undefined : end - offset;
      const response = reply.raw as ServerResponse;
      reply.hijack();
      response.writeHead(partial ? 206 : 200, {
        ...fileHeaders(info.modifiedAtUnix),
        ...(promised === undefined ? {} : { "content-length": String(promised) }),
        ...(partial ? { "content-range": `bytes ${offset}-${end - 1}/${size}` } : {}),
      });
      await sendAll(
        exactly(data, promised, (bytes) => (sent += bytes)),
        response,
        client.signal,
      );
      ok = true;
    } finally {
      context.auditFor(request.raw).record({ sandbox_id: id, op: "read_file", bytes: sent, ok });
    }
    return reply;
  });

  app.put("/v1/sandboxes/:id/files", async (request, reply) => {
    const { id } = check(params, request.params);
    const query = check(writeQuery, request.query);
    let bytes = 0;
    let ok = false;
    try {
      using client = requestSignal(request, reply, context.shutdown);
      bytes = await context
        .engineFor(request.raw)
        .runtime(id)
        .writeFile(query.path, Number.parseInt(query.mode, 8), bodyOf(request), client.signal);
      ok = true;
    } finally {
      context.auditFor(request.raw).record({ sandbox_id: id, op: "write_file", bytes, ok });
    }
    return { bytes_written: bytes };
  });

  app.post("/v1/sandboxes/:id/files/rename", async (request) => {
    const { id } = check(params, request.params);
    const { from, to } = await readJson(request, renameBody);
    await audited(context.auditFor(request.raw), { sandbox_id: id, op: "rename" }, () =>
      context.engineFor(request.raw).runtime(id).rename(from, to),
    );
    return { status: "renamed" };
  });
}

interface Range {
  readonly offset: number;
  /** 0 = to the end */
  readonly length: number;
  readonly partial: boolean;
}

const wholeFile: Range = { offset: 0, length: 0, partial: false };

/** One range; anything else is answered with the whole file, as RFC 9110 allows. */
async function parseRange(header: string | undefined, size: () => Promise<number>): Promise<Range> {
  const match = /^bytes=(\d{0,15})-(\d{0,15})$/.exec(header ?? "");
  if (!match) return wholeFile;
  const [, first = "", last = ""] = match;
  if (first === "" && last === "") return wholeFile;
  if (first === "") {
    const total = await size();
    return { offset: Math.max(0, total - Number(last)), length: 0, partial: true };
  }
  if (last === "") return { offset: Number(first), length: 0, partial: true };
  if (Number(last) < Number(first)) return wholeFile;
  return { offset: Number(first), length: Number(last) - Number(first) + 1, partial: true };
}

function rangeError(size: number): MitosError {
  return new MitosError("invalid_input", { cause: `the range begins behind the end of the file, which has ${size} bytes` });
}

function isDirectory(file: string): MitosError {
  return new MitosError("invalid_input", { cause: `${file} is a directory` });
}

function fileHeaders(modifiedAtUnix: bigint): Record<string, string> {
  return {
    "content-type": "application/octet-stream",
    "accept-ranges": "bytes",
    "last-modified": new Date(Number(modifiedAtUnix) * 1000).toUTCString(),
    "x-content-type-options": "nosniff",
  };
}

/** Keeps the promise of Content-Length: cuts a file that grew, fails (which cuts the connection) for one that shrank. */
async function* exactly(
  data: AsyncIterable<Uint8Array>,
  promised: number | undefined,
  count: (bytes: number) => void,
): AsyncGenerator<Uint8Array> {
  let left = promised ?? Number.POSITIVE_INFINITY;
  for await (const chunk of data) {
    const piece = chunk.length > left ? chunk.subarray(0, left) : chunk;
    left -= piece.length;
    count(piece.length);
    if (piece.length > 0) yield piece;
    if (left === 0) return;
  }
  if (promised !== undefined && left > 0) throw new MitosError("file_failed", { cause: "the file became shorter while it was read" });
}
