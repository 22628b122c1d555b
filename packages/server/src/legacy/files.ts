import { create } from "@bufbuild/protobuf";
import { limits, MitosError, type SandboxId } from "@mitos/protocol";
import { sandbox as pb } from "@mitos/protocol/proto";
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import { z } from "zod";
import type { Call } from "../connect/call.ts";
import { list, mkdir, readFile, remove, writeFile } from "../connect/files.ts";
import type { ServerContext } from "../context.ts";
import { readJson } from "../http/json.ts";
import { fileMode, path, sandboxId } from "../schemas.ts";
import { asCall, inContext } from "./call.ts";

const place = z.object({ sandbox: sandboxId, path });
/** With `binary` the content is hexadecimal digits, both ways: that is how these clients send and expect bytes. */
const readBody = place.extend({ binary: z.boolean().nullish() });
const writeBody = place
  .extend({ content: z.string(), mode: fileMode.nullish(), binary: z.boolean().nullish() })
  .refine((body) => !body.binary || isHex(body.content), { path: ["content"], error: "must be pairs of hexadecimal digits" });

export function fileRoutes(app: FastifyInstance, context: ServerContext): void {
  app.post("/v1/files/read", async (request, reply) => {
    const body = await readJson(request, readBody);
    return onFile({ request, reply, body, op: "read_file" }, async (call) => {
      const bytes = await wholeFile(body.path, call);
      return { content: bytes.toString(body.binary ? "hex" : "utf8"), size: bytes.length };
    });
  });

  app.post("/v1/files/write", async (request, reply) => {
    const body = await readJson(request, writeBody);
    return onFile({ request, reply, body, op: "write_file" }, async (call) => {
      const data = Buffer.from(body.content, body.binary ? "hex" : "utf8");
      await writeFile(messages({ path: body.path, mode: body.mode ?? 0 }, data), call);
      return { status: "ok" };
    });
  });

  app.post("/v1/files/list", async (request, reply) => {
    const body = await readJson(request, place);
    return onFile({ request, reply, body, op: "list_dir" }, async (call) => {
      const { entries } = await list(create(pb.ListRequestSchema, { parent: body.path }), call);
      return { entries: entries.map(entryJson) };
    });
  });

  app.post("/v1/files/mkdir", async (request, reply) => {
    const body = await readJson(request, place);
    return onFile({ request, reply, body, op: "mkdir" }, async (call) => {
      await mkdir(create(pb.MkdirRequestSchema, { path: body.path }), call);
      return { status: "ok" };
    });
  });

  app.post("/v1/files/remove", async (request, reply) => {
    const body = await readJson(request, place);
    return onFile({ request, reply, body, op: "remove" }, async (call) => {
      await remove(create(pb.RemoveRequestSchema, { path: body.path }), call);
      return { status: "ok" };
    });
  });

  interface FileRequest {
    readonly request: FastifyRequest;
    readonly reply: FastifyReply;
    readonly body: { readonly sandbox: SandboxId; readonly path: string };
    readonly op: string;
  }

  async function onFile<T>({ request, reply, body, op }: FileRequest, handle: (call: Call) => Promise<T>): Promise<T> {
    try {
      return await asCall(context, { request, reply, sandbox: body.sandbox, op }, handle);
    } catch (error) {
      throw inContext(error, { sandbox: body.sandbox, path: body.path });
    }
  }
}

function isHex(text: string): boolean {
  return text.length % 2 === 0 && !/[^0-9a-fA-F]/.test(text);
}

/** @throws body_too_large, since the answer is one JSON object */
async function wholeFile(file: string, call: Call): Promise<Buffer> {
  const chunks: Uint8Array[] = [];
  let total = 0;
  for await (const { data } of readFile(create(pb.ReadFileRequestSchema, { path: file }), call)) {
    total += data.length;
    if (total > limits.messageBytesMax) {
      throw new MitosError("body_too_large", {
        message: "the file is too large for one JSON answer",
        cause: `the limit is ${limits.messageBytesMax} bytes`,
        remediation: "Read it with GET /v1/sandboxes/{id}/files, which streams files of any size.",
      });
    }
    chunks.push(data);
  }
  return Buffer.concat(chunks, total);
}

async function* messages(open: { path: string; mode: number }, data: Uint8Array): AsyncGenerator<pb.WriteFileRequest> {
  yield create(pb.WriteFileRequestSchema, { msg: { case: "open", value: open } });
  yield create(pb.WriteFileRequestSchema, { msg: { case: "data", value: data } });
}

function entryJson({ name, isDir, size, mode, modifiedAtUnix }: pb.FileInfo): object {
  return { name, is_dir: isDir, size: Number(size), mode, modified_at: Number(modifiedAtUnix) };
}
