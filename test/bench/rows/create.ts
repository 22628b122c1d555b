import { resourceDefaults } from "@mitos/protocol";
import type { CreateOptions } from "@mitos/sdk";
import type { Way } from "../bench-server.ts";
import { baseline, type Line, ours, type Row } from "../row.ts";
import { timedMs } from "../statistics.ts";

const byHand = "`runsc run … echo`";
const ready: Line = {
  what: "create → first exec result, ready pool",
  baseline: byHand,
  unit: "ms",
  judge: "ratio",
  reach: { atMost: 0.2 },
  aim: { atMost: 0.1 },
};
const empty: Line = {
  what: "create → first exec result, pool empty",
  baseline: byHand,
  unit: "ms",
  judge: "ratio",
  reach: { atMost: 0.9 },
  aim: { atMost: 0.5 },
};

export function createRow(): Row {
  return {
    name: "create",
    lines: [ready, empty],
    async open({ server, hand }) {
      const toFirstResult = async (way: Way, options: Omit<CreateOptions, "baseUrl"> = {}) => {
        const [sandbox, ms] = await server.start(way, async () => {
          const started = performance.now();
          const created = await server.create(options);
          requireEcho((await created.exec("echo ready")).stdout);
          return [created, performance.now() - started] as const;
        });
        await sandbox.terminate();
        return ms;
      };
      return {
        steps: [
          async () => [ours(ready, await toFirstResult("pooled"))],
          // Nothing can be ready for an amount of memory that nobody has asked for yet.
          async (round) => [
            ours(empty, await toFirstResult("unprepared", { resources: { memSizeMiB: resourceDefaults.memSizeMiB + 1 + round } })),
          ],
          async () => {
            await server.machines.atRest();
            const ms = await timedMs(async () => requireEcho(await hand.run(["echo", "ready"])));
            return [baseline(ready, ms), baseline(empty, ms)];
          },
        ],
        async [Symbol.asyncDispose]() {},
      };
    },
  };
}

function requireEcho(output: string): void {
  if (output !== "ready\n") throw new Error(`echo has printed ${JSON.stringify(output)}`);
}
