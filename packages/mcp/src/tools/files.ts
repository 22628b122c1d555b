import { limits } from "@mitos/protocol";
import { z } from "zod";
import { wholeCharacters } from "../bounded-text.ts";
import { ToolError } from "../errors.ts";
import { jsonResult, textResult } from "../results.ts";
import { defineTool, sandboxId } from "./tool.ts";

const readBytesDefault = 128 * 1024;
const readBytesMax = 1024 * 1024;
const entriesMax = 1000;

const path = z.string().min(1).max(limits.pathBytesMax);
const encoding = z.enum(["utf-8", "base64"]).optional();

export const sandboxReadFile = defineTool({
  name: "sandbox_read_file",
  title: "Read a file",
  description: "Answers the text of a file in a sandbox, or its bytes as base64. A long file is answered in parts: read on with offset.",
  arguments: {
    sandbox: sandboxId,
    path: path.describe("Path of the file."),
    encoding: encoding.describe("base64 for files that are not text. Default: utf-8."),
    offset: z.int().min(0).optional().describe("First byte. Default: 0."),
    length: z.int().min(1).max(readBytesMax).optional().describe(`The most bytes to answer. Default: ${readBytesDefault}.`),
  },
  hints: { readOnly: true },
  async call({ sandbox, path, encoding = "utf-8", offset = 0, length = readBytesDefault }, { backend, signal }) {
    const stream = await backend.sandbox(sandbox).files.readStream(path, { offset, signal });
    const { bytes, more } = await readUpTo(stream, length);
    if (encoding === "base64") return textResult(bytes.toString("base64"), ...(more ? [goesOn(offset + bytes.length)] : []));
    // The next part begins with a whole character; in what is not text there may be none at the end.
    const whole = more ? bytes.subarray(0, wholeCharacters(bytes) || bytes.length) : bytes;
    const content = new TextDecoder("utf-8", { ignoreBOM: true }).decode(whole);
    return textResult(content, ...(more ? [goesOn(offset + whole.length)] : []), ...(isText(whole) ? [] : [notText]));
  },
});

export const sandboxWriteFile = defineTool({
  name: "sandbox_write_file",
  title: "Write a file",
  description: "Creates or replaces a file in a sandbox, with the folders above it.",
  arguments: {
    sandbox: sandboxId,
    path: path.describe("Path of the file."),
    content: z.string().describe("All of its content."),
    encoding: encoding.describe("base64 for content that is not text. Default: utf-8."),
  },
  hints: { destructive: true, idempotent: true },
  async call({ sandbox, path, content, encoding = "utf-8" }, { backend, signal }) {
    const bytes = encoding === "base64" ? fromBase64(content) : new TextEncoder().encode(content);
    await backend.sandbox(sandbox).files.write(path, bytes, { signal });
    return textResult(`Wrote ${bytes.length} bytes to ${path} in sandbox ${sandbox}`);
  },
});

export const sandboxListFiles = defineTool({
  name: "sandbox_list_files",
  title: "List files",
  description: "Answers the entries of a folder in a sandbox.",
  arguments: { sandbox: sandboxId, path: path.optional().describe("Path of the folder. Default: /workspace.") },
  output: z.object({
    files: z.array(z.object({ name: z.string(), is_dir: z.boolean(), size: z.int(), mode: z.int() })),
    notice: z.string().optional().describe("What is missing, and how to get it."),
  }),
  hints: { readOnly: true },
  async call({ sandbox, path = "/workspace" }, { backend }) {
    const all = await backend.sandbox(sandbox).files.list(path);
    const files = all.slice(0, entriesMax).map(({ name, isDir, size, mode }) => ({ name, is_dir: isDir, size, mode }));
    const notice = `${path} has ${all.length} entries and ${entriesMax} are listed. For all of them run \`ls\` with sandbox_exec.`;
    return jsonResult({ files, ...(all.length > entriesMax ? { notice } : {}) });
  },
});

/** Stops reading once it has seen that there is more. */
async function readUpTo(stream: ReadableStream<Uint8Array>, length: number): Promise<{ bytes: Buffer; more: boolean }> {
  const chunks: Uint8Array[] = [];
  let size = 0;
  for await (const chunk of stream) {
    chunks.push(chunk);
    size += chunk.length;
    if (size > length) break;
  }
  return { bytes: Buffer.concat(chunks).subarray(0, length), more: size > length };
}

function goesOn(offset: number): string {
  return `The file goes on here: read on with offset ${offset}.`;
}

const notText = "Not all of this is UTF-8 text: what is not reads as U+FFFD. Use encoding base64 for the bytes.";

function isText(bytes: Uint8Array): boolean {
  try {
    new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    return true;
  } catch {
    return false;
  }
}

/** Buffer.from would skip what is not base64 and write something else than was meant. */
function fromBase64(content: string): Uint8Array {
  const compact = content.replaceAll(/\s/g, "");
  if (/^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/.test(compact)) return Buffer.from(compact, "base64");
  throw new ToolError(
    "invalid_arguments",
    "content: not base64",
    "Encode the bytes as standard base64 with padding, or leave encoding out.",
  );
}
