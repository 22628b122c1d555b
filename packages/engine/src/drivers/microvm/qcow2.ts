import { Buffer } from "node:buffer";
import { type FileHandle, open } from "node:fs/promises";

/** Of the format; what QEMU takes when nobody asks for another. */
const clusterBits = 16;
const clusterBytes = 1 << clusterBits;
const sectorBytes = 512;
/** With 16 bits for each cluster. */
const refcountOrder = 4;
const clustersPerRefcountBlock = clusterBytes / 2;
/** One table of the second level says where this much of the disk lies. */
const bytesPerL2Table = (clusterBytes / 8) * clusterBytes;
/** QEMU refuses longer names. */
const backingNameBytesMax = 1023;
const headerBytes = 112;

const extension = { end: 0, backingFormat: 0xe2792aca } as const;

export interface OverlayShape {
  /** What the machine sees, in bytes: a multiple of 512, as of the file below. At most 64 TiB. */
  readonly diskBytes: number;
  /** Absent while it lies over nothing. */
  readonly backing?: Backing;
}

/** The file below, as `qemu-img` is to find it. Machines are told every file of a chain and do not look here. */
export interface Backing {
  /** Relative to the overlay's folder. */
  readonly name: string;
  readonly format: "qcow2" | "raw";
}

/**
 * Writes an overlay with nothing in it yet, mode 0600. Takes half a millisecond, where `qemu-img create` takes nine.
 *
 * @throws EEXIST, ENOSPC. What was begun is then left to the caller.
 */
export async function writeOverlay(file: string, shape: OverlayShape): Promise<void> {
  const parts = overlayParts(shape);
  const handle = await open(file, "wx", 0o600);
  try {
    await Promise.all([handle.truncate(parts.fileBytes), ...parts.written.map(({ offset, bytes }) => writeAll(handle, bytes, offset))]);
  } finally {
    await handle.close();
  }
}

/** Says what an overlay lies over of which nothing was said when it was written, and to which nobody has written since. */
export async function writeBacking(file: string, shape: Required<OverlayShape>): Promise<void> {
  const [{ bytes, offset }] = overlayParts(shape).written;
  const handle = await open(file, "r+");
  try {
    await writeAll(handle, bytes, offset);
  } finally {
    await handle.close();
  }
}

/**
 * The header, a table of refcount blocks, the first of these blocks, and the table of the first level, each from a cluster of its own. What is not
 * written is a hole: zeros, "not here, look below".
 *
 * @see docs/interop/qcow2 of QEMU, version 3
 */
function overlayParts(shape: OverlayShape): { fileBytes: number; written: readonly [Part, ...Part[]] } {
  const { diskBytes } = shape;
  if (!Number.isSafeInteger(diskBytes) || diskBytes <= 0 || diskBytes % sectorBytes !== 0 || diskBytes > 2 ** 46)
    throw new RangeError(`no size of a disk: ${diskBytes}`);
  const l1Entries = Math.ceil(diskBytes / bytesPerL2Table);
  const l1Clusters = Math.ceil((l1Entries * 8) / clusterBytes);
  const clusters = 3 + l1Clusters;
  const at = { refcountTable: clusterBytes, refcountBlock: 2 * clusterBytes, l1: 3 * clusterBytes };

  const refcountTable = Buffer.alloc(8);
  refcountTable.writeBigUInt64BE(BigInt(at.refcountBlock));
  if (clusters > clustersPerRefcountBlock) throw new RangeError(`no size of a disk: ${diskBytes}`);
  const refcounts = Buffer.alloc(clusters * 2);
  for (let cluster = 0; cluster < clusters; cluster += 1) refcounts.writeUInt16BE(1, cluster * 2);

  return {
    fileBytes: clusters * clusterBytes,
    written: [
      { offset: 0, bytes: header(shape, { l1Entries, ...at }) },
      { offset: at.refcountTable, bytes: refcountTable },
      { offset: at.refcountBlock, bytes: refcounts },
    ],
  };
}

interface Part {
  readonly offset: number;
  readonly bytes: Buffer;
}

function header({ diskBytes, backing }: OverlayShape, at: { l1Entries: number; l1: number; refcountTable: number }): Buffer {
  const name = Buffer.from(backing?.name ?? "");
  if (backing && (name.length === 0 || name.length > backingNameBytesMax)) throw new RangeError(`no name of a file below: ${backing.name}`);
  const format = backing ? [headerExtension(extension.backingFormat, Buffer.from(backing.format))] : [];
  const extensions = Buffer.concat([...format, headerExtension(extension.end)]);
  const fixed = Buffer.alloc(headerBytes);
  fixed.write("QFI\xfb", 0, "latin1");
  fixed.writeUInt32BE(3, 4); // version
  if (backing) fixed.writeBigUInt64BE(BigInt(headerBytes + extensions.length), 8);
  fixed.writeUInt32BE(name.length, 16);
  fixed.writeUInt32BE(clusterBits, 20);
  fixed.writeBigUInt64BE(BigInt(diskBytes), 24);
  fixed.writeUInt32BE(0, 32); // not encrypted
  fixed.writeUInt32BE(at.l1Entries, 36);
  fixed.writeBigUInt64BE(BigInt(at.l1), 40);
  fixed.writeBigUInt64BE(BigInt(at.refcountTable), 48);
  fixed.writeUInt32BE(1, 56); // clusters of the refcount table
  // From 60: no internal snapshots, no features that a reader must know, may know or must clear. Lazy refcounts are one of them: not after a kill.
  fixed.writeUInt32BE(refcountOrder, 96);
  fixed.writeUInt32BE(headerBytes, 100);
  return Buffer.concat([fixed, extensions, name]);
}

function headerExtension(type: number, data = Buffer.alloc(0)): Buffer {
  const head = Buffer.alloc(8);
  head.writeUInt32BE(type, 0);
  head.writeUInt32BE(data.length, 4);
  return Buffer.concat([head, data, Buffer.alloc((8 - (data.length % 8)) % 8)]);
}

/** `write` may take less than all of it, as on a disk that is just full. */
async function writeAll(handle: FileHandle, bytes: Buffer, offset: number): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    const { bytesWritten } = await handle.write(bytes, done, bytes.length - done, offset + done);
    done += bytesWritten;
  }
}
