import type { Sandbox } from "@mitos/sdk";
import { type Line, ours, type Row } from "../row.ts";
import type { Scale } from "../scale.ts";
import { holdState } from "./state.ts";

/** What a parent may use: what it saves in a fork counts as its own for as long as it is being saved, and some more is for its programs. */
const limitOf = (mib: number) => 2 * mib + 512;

/** Between QUIESCE and RESUME, as the fork's answer tells it. */
export function standstillRow({ stateMiB }: Scale): Row {
  const lines = stateMiB.map((mib, index): Line => {
    const bounds: Partial<Line> = index === 0 ? { reach: { atMost: 80 }, aim: { atMost: 40 } } : {};
    return { what: `the parent stands still during a fork, ${mib} MiB of interpreter state`, unit: "ms", judge: "median", ...bounds };
  });
  return {
    name: "standstill",
    lines,
    roundsShare: 1 / 3,
    async open({ server }) {
      const parents: Sandbox[] = [];
      for (const mib of stateMiB) {
        const parent = await server.create({ resources: { memSizeMiB: limitOf(mib) } });
        parents.push(parent);
        await holdState(parent, mib);
      }
      const steps = lines.map((line, index) => async () => {
        await server.machines.atRest();
        const children = await parents[index]!.fork(1);
        await Promise.all(children.map((child) => child.terminate()));
        if (children.pausedMs === undefined) throw new Error("the server does not tell how long the parent stood still");
        return [ours(line, children.pausedMs)];
      });
      return {
        steps,
        async [Symbol.asyncDispose]() {
          await Promise.all(parents.map((parent) => parent.terminate()));
        },
      };
    },
  };
}
