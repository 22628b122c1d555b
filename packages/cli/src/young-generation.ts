import v8 from "node:v8";

/** Two halves of 2 MiB, of which one is in use. */
const wantedBytes = 4 * 1024 * 1024;
const pieceLength = 4096;
/** Enough in any case. */
const piecesMax = 1024;

/**
 * Keeps V8's space for new objects at 4 MiB, where it would grow to 64. Contents of files pass through a server in buffers outside that space, which are
 * let go of when it is full; with a large one it is not full before so many of them have come together that V8 goes through all of its memory
 * instead, some three times for 64 MiB. To be called before much has been loaded: what the space has grown to, it stays at.
 */
export function keepYoungGenerationSmall(): void {
  // It grows when what is new has outlived a collection.
  const alive: unknown[] = [];
  while (youngBytes() < wantedBytes && alive.length < piecesMax) alive.push(new Array(pieceLength).fill(alive.length));
  // Node has no other way to set it in a process that runs; 1 = not at all.
  v8.setFlagsFromString("--semi-space-growth-factor=1");
}

function youngBytes(): number {
  return v8.getHeapSpaceStatistics().find((space) => space.space_name === "new_space")?.space_size ?? wantedBytes;
}
