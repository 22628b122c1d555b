import type { Sandbox } from "@mitos/sdk";
import type { Way } from "../bench-server.ts";
import { baseline, type Line, ours, type Row, type Sample } from "../row.ts";
import type { Scale } from "../scale.ts";
import { timedMs } from "../statistics.ts";

/** How often each of the busy ones is asked for something. */
const busyEveryMs = 500;
const changedAtOnce = 16;

/**
 * Latency of creates and forks among few and many sandboxes. The work that is done beside is the same at every size, spread over as many sandboxes as
 * shall be busy, or over all where there are fewer: what grows is their number alone.
 */
export function growthRow({ sandboxes: sizes, busySandboxes, growthSamples }: Scale): Row {
  const [first, ...more] = sizes;
  const linesOf = (what: string) =>
    more.map((size): Line => {
      const bounds: Partial<Line> = size === more.at(-1) ? { reach: { atMost: 1.5 }, aim: { atMost: 1.2 } } : {};
      return { what: `${what} among ${size} sandboxes`, baseline: `among ${first}`, unit: "ms", judge: "ratio", ...bounds };
    });
  const creates = linesOf("create → first exec result");
  const forks = linesOf("fork(1) → first exec result");
  return {
    name: "growth",
    lines: [...creates, ...forks],
    // Twice, since the second round goes from many to few.
    roundsShare: 2 / 15,
    async open({ server, signal }) {
      const population: Sandbox[] = [await server.create()];
      const resize = async (size: number) => {
        while (population.length < size) {
          signal.throwIfAborted();
          population.push(...(await population[0]!.fork(Math.min(changedAtOnce, size - population.length))));
        }
        while (population.length > size) {
          const leaving = population.splice(Math.max(size, population.length - changedAtOnce));
          await Promise.all(leaving.map((sandbox) => sandbox.terminate()));
        }
        await server.machines.atRest();
      };
      const toFirstResult = (way: Way, make: () => Promise<Sandbox>) =>
        server.start(way, async () => {
          let sandbox: Sandbox | undefined;
          const ms = await timedMs(async () => {
            sandbox = await make();
            await sandbox.exec("true");
          });
          await sandbox?.terminate();
          return ms;
        });
      const measureAt = async (size: number): Promise<readonly Sample[]> => {
        await resize(size);
        await using _busy = keepBusy(population.slice(0, busySandboxes), busySandboxes);
        const samples: Sample[] = [];
        const add = (lines: readonly Line[], ms: number) => {
          if (size === first) samples.push(...lines.map((line) => baseline(line, ms)));
          else samples.push(ours(lines[more.indexOf(size)]!, ms));
        };
        for (let sample = 0; sample < growthSamples; sample++) {
          signal.throwIfAborted();
          add(creates, await toFirstResult("pooled", () => server.create()));
          add(forks, await toFirstResult("prepared", async () => (await population[0]!.fork(1))[0]!));
        }
        return samples;
      };
      return {
        steps: sizes.map((size) => () => measureAt(size)),
        async [Symbol.asyncDispose]() {
          // After Ctrl-C the server ends them all at once, which is sooner done.
          if (!signal.aborted) await resize(0);
        },
      };
    },
  };
}

/** So many clients ask for an exec now and then, until this is disposed of. */
function keepBusy(sandboxes: readonly Sandbox[], clients: number): AsyncDisposable {
  const stop = new AbortController();
  const work = async (client: number) => {
    while (!stop.signal.aborted) {
      await sandboxes[client % sandboxes.length]!.exec("true");
      await new Promise((resolve) => setTimeout(resolve, busyEveryMs));
    }
  };
  const working = Promise.all(Array.from({ length: clients }, (_, client) => work(client)));
  working.catch(() => undefined); // told when it is disposed of
  return {
    async [Symbol.asyncDispose]() {
      stop.abort();
      await working;
    },
  };
}
