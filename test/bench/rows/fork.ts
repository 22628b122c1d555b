import type { Sandbox } from "@mitos/sdk";
import { removeEach, startEach } from "../hands.ts";
import { type Line, ours, type Row } from "../row.ts";
import type { Scale } from "../scale.ts";
import { timedMs } from "../statistics.ts";
import { holdState, startHolding } from "./state.ts";

/** Its lines: a fork of one child and a large one. What is done by hand is measured once for both: by hand each child is made in the same way. */
export function forkRow({ stateMiB: [mib], forkCount }: Scale): Row {
  const byHand = "checkpoint, restore, exec by hand";
  const one: Line = {
    what: `fork(1) → first exec result, ${mib} MiB of interpreter state`,
    baseline: byHand,
    unit: "ms",
    judge: "ratio",
    reach: { atMost: 0.5 },
    aim: { atMost: 0.2 },
  };
  const many: Line = {
    what: `fork(${forkCount}) → all have answered an exec`,
    baseline: `${forkCount} × ${byHand}`,
    unit: "ms",
    judge: "ratio",
    reach: { atMost: 0.25 },
    aim: { atMost: 0.1 },
  };
  return {
    name: "fork",
    lines: [one, many],
    async open({ server, hands }) {
      const parent = await server.create();
      await holdState(parent, mib);
      const containers = await startEach(hands, (hand) => startHolding(hand, mib));
      const forkMs = async (count: number) => {
        let children: readonly Sandbox[] = [];
        await server.machines.atRest();
        const ms = await timedMs(async () => {
          children = await parent.fork(count);
          await Promise.all(children.map((child) => child.exec("true")));
        });
        await Promise.all(children.map((child) => child.terminate()));
        return ms;
      };
      return {
        steps: [
          async () => [ours(one, await server.start("prepared", () => forkMs(1)))],
          async () => [ours(many, await forkMs(forkCount))],
          ...containers.map(({ hand, container, sample }) => async () => {
            let copy = "";
            await server.machines.atRest();
            const ms = await timedMs(async () => {
              copy = await hand.fork(container);
              await hand.exec(copy, ["true"]);
            });
            await hand.remove(copy);
            return [sample(one, ms), sample(many, ms * forkCount)];
          }),
        ],
        async [Symbol.asyncDispose]() {
          await Promise.all([parent.terminate(), removeEach(containers)]);
        },
      };
    },
  };
}
