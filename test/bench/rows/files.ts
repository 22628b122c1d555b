import { removeEach, startEach } from "../hands.ts";
import { type Line, ours, type Row } from "../row.ts";
import type { Scale } from "../scale.ts";
import { timedMs } from "../statistics.ts";

/** Not there before, neither here nor by hand: what is written over another file is kept apart until it is complete. */
const file = "/workspace/bench";

/** Large enough to travel over the raw route. */
export function filesRow({ fileMiB }: Scale): Row {
  const lineOf = (what: string): Line => ({
    what: `${fileMiB} MiB file ${what}`,
    baseline: "`runsc exec … cat`",
    unit: "MiB/s",
    judge: "ratio",
    reach: { atLeast: 1 },
    aim: { atLeast: 3 },
  });
  const written = lineOf("written");
  const read = lineOf("read");
  const bytes = new Uint8Array(fileMiB * 2 ** 20).fill(1);
  const rate = (ms: number) => (fileMiB * 1000) / ms;
  return {
    name: "files",
    lines: [written, read],
    async open({ server, hands }) {
      const sandbox = await server.create();
      const containers = await startEach(hands, (hand) => hand.start(["sleep", "infinity"]));
      await server.machines.atRest();
      const samples = (sample: typeof ours, write: number, readBack: number) => [
        sample(written, rate(write)),
        sample(read, rate(readBack)),
      ];
      return {
        steps: [
          async () => {
            const write = await timedMs(() => sandbox.files.write(file, bytes));
            const readBack = await timedMs(async () => requireWhole(await lengthOf(await sandbox.files.readStream(file)), bytes));
            await sandbox.files.remove(file);
            return samples(ours, write, readBack);
          },
          ...containers.map(({ hand, container, sample }) => async () => {
            const write = await timedMs(() => hand.exec(container, ["sh", "-c", `cat > ${file}`], { input: bytes }));
            const readBack = await timedMs(async () => {
              let length = 0;
              const onOutput = (piece: Buffer) => {
                length += piece.length;
              };
              await hand.exec(container, ["cat", file], { onOutput });
              requireWhole(length, bytes);
            });
            await hand.exec(container, ["rm", file]);
            return samples(sample, write, readBack);
          }),
        ],
        async [Symbol.asyncDispose]() {
          await Promise.all([sandbox.terminate(), removeEach(containers)]);
        },
      };
    },
  };
}

async function lengthOf(pieces: AsyncIterable<Uint8Array>): Promise<number> {
  let length = 0;
  for await (const piece of pieces) length += piece.length;
  return length;
}

function requireWhole(length: number, bytes: Uint8Array): void {
  if (length !== bytes.length) throw new Error(`${length} of ${bytes.length} bytes came back`);
}
