import { resourceDefaults } from "@mitos/protocol";
import { cpuShare } from "../machines.ts";
import { type Line, ours, type Row } from "../row.ts";
import type { Scale } from "../scale.ts";

/** As many of one kind as are made ready at most. */
const forkedAtOnce = 8;

/** No sandbox lives: whatever machine there is waits to become one. */
export function waitingRow({ waiting, idleMs }: Scale): Row {
  const line: Line = {
    what: `${waiting} ready machines waiting: processor time of all`,
    unit: "% of a core",
    judge: "median",
    reach: { atMost: 2 },
    aim: { atMost: 0 },
  };
  return {
    name: "waiting",
    lines: [line],
    roundsShare: 1 / 5,
    async open({ server }) {
      // After a fork as many wait as it had children. Each amount of memory is a kind of its own.
      for (let kind = 1; (await server.machines.list()).length < waiting; kind++) {
        if (kind > waiting) throw new Error(`only ${(await server.machines.list()).length} machines are kept ready`);
        const parent = await server.create({ resources: { memSizeMiB: resourceDefaults.memSizeMiB + 64 * kind } });
        const children = await parent.fork(Math.min(forkedAtOnce, waiting));
        await Promise.all([parent, ...children].map((sandbox) => sandbox.terminate()));
        await server.machines.atRest();
      }
      return {
        steps: [
          async () => {
            const machines = await server.machines.list();
            if (machines.length < waiting) throw new Error(`only ${machines.length} machines wait`);
            return [ours(line, (await cpuShare(machines.slice(0, waiting), idleMs)) * 100)];
          },
        ],
        async [Symbol.asyncDispose]() {},
      };
    },
  };
}
