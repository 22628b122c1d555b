// Takes the kernel out of a `vmlinuz`, which is a small program with the kernel compressed behind it, and modules out of their compression.
// Plain JavaScript for Node 18: of the formats it knows only gzip.
import { spawnSync } from "node:child_process";
import { gunzipSync } from "node:zlib";
import { SetupError } from "../run.mjs";

/** A kernel as an ELF file, which is what a virtual machine is started with. */
export function kernelOf(vmlinuz) {
  if (vmlinuz.toString("latin1", 0x202, 0x206) !== "HdrS") throw new SetupError("the kernel's package holds no bzImage", undefined);
  const start = (vmlinuz[0x1f1] + 1) * 512 + vmlinuz.readUInt32LE(0x248);
  const payload = vmlinuz.subarray(start, start + vmlinuz.readUInt32LE(0x24c));
  const kernel = decompressed(payload, { sizeAtEnd: true });
  if (kernel.toString("latin1", 1, 4) !== "ELF") throw new SetupError("what the kernel's package holds is not an ELF file", undefined);
  return kernel;
}

/**
 * @param options.sizeAtEnd - the kernel's build puts the length of the content, 4 bytes, behind formats that do not end with it themselves
 * @returns the content; `data` itself when it is not compressed
 */
export function decompressed(data, { sizeAtEnd = false } = {}) {
  const body = sizeAtEnd ? data.subarray(0, -4) : data;
  switch (data.toString("hex", 0, 4)) {
    case "02214c18":
      return lz4Legacy(body);
    case "28b52ffd":
      return through("zstd", body);
    case "fd377a58":
      return through("xz", body);
    default:
      return data.toString("hex", 0, 2) === "1f8b" ? gunzipSync(data) : data;
  }
}

function through(command, data) {
  const result = spawnSync(command, ["-d", "-c"], { input: data, maxBuffer: 1 << 30 });
  if (result.status === 0) return result.stdout;
  throw new SetupError(
    `${command} cannot decompress a part of the kernel: ${result.error?.message ?? result.stderr.toString().trim()}`,
    `Install ${command} (Debian and Ubuntu: the package ${command === "xz" ? "xz-utils" : command}).`,
  );
}

/** Blocks one after the other, each with its compressed length before it and no more than 8 MiB of content. */
function lz4Legacy(data) {
  const blocks = [];
  const block = Buffer.alloc(8 << 20);
  for (let at = 4; at + 4 <= data.length; ) {
    const length = data.readUInt32LE(at);
    at += 4;
    blocks.push(Buffer.from(block.subarray(0, lz4Block(data.subarray(at, at + length), block))));
    at += length;
  }
  return Buffer.concat(blocks);
}

/** @returns how many bytes it has written to `target` */
function lz4Block(source, target) {
  let at = 0;
  let written = 0;
  const lengthOf = (nibble) => {
    let length = nibble;
    if (nibble === 15) {
      let more;
      do {
        more = source[at++];
        length += more;
      } while (more === 255);
    }
    return length;
  };
  while (at < source.length) {
    const token = source[at++];
    const literals = lengthOf(token >> 4);
    if (at + literals > source.length || written + literals > target.length)
      throw new SetupError("the kernel's compressed part is damaged", undefined);
    written += source.copy(target, written, at, at + literals);
    at += literals;
    if (at >= source.length) break; // the last sequence has literals alone
    const distance = source[at] | (source[at + 1] << 8);
    at += 2;
    const length = lengthOf(token & 15) + 4;
    if (distance === 0 || distance > written || written + length > target.length) {
      throw new SetupError("the kernel's compressed part is damaged", undefined);
    }
    // It may reach into what it is just writing, so byte by byte.
    for (let left = length; left > 0; left--) {
      target[written] = target[written - distance];
      written++;
    }
  }
  return written;
}
