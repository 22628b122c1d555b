import { resourceDefaults } from "@mitos/protocol";
import type { CreateOptions } from "@mitos/sdk";
import type { Way } from "../bench-server.ts";
import { type Line, ours, type Row } from "../row.ts";
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
const nothing: Line = { what: "create → first exec result, nothing made ahead", baseline: byHand, unit: "ms", judge: "ratio" };

/** Machines wait only for creates with the template's own resources; of any others only containers are made ahead, and after the first one. */
const { memSizeMiB } = resourceDefaults;
const unlikeTemplate = { memSizeMiB: memSizeMiB + 1 };

export function createRow(): Row {
  return {
    name: "create",
    lines: [ready, empty, nothing],
    async open({ server, hands }) {
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
      await (await server.create({ resources: unlikeTemplate })).terminate();
      return {
        steps: [
          async () => [ours(ready, await toFirstResult("pooled"))],
          async () => [ours(empty, await toFirstResult("prepared", { resources: unlikeTemplate }))],
          // Nothing can be ready for an amount of memory that nobody has asked for yet.
          async (round) => [ours(nothing, await toFirstResult("unprepared", { resources: { memSizeMiB: memSizeMiB + 2 + round } }))],
          ...hands.map(({ hand, sample }) => async () => {
            await server.machines.atRest();
            const ms = await timedMs(async () => requireEcho(await hand.run(["echo", "ready"])));
            return [ready, empty, nothing].map((line) => sample(line, ms));
          }),
        ],
        async [Symbol.asyncDispose]() {},
      };
    },
  };
}

function requireEcho(output: string): void {
  if (output !== "ready\n") throw new Error(`echo has printed ${JSON.stringify(output)}`);
}
