import type { Sandbox } from "@mitos/sdk";
import { cpuShare, processesOf, uniqueBytes } from "../machines.ts";
import { type Line, ours, type Row } from "../row.ts";
import type { Scale } from "../scale.ts";

const forkedAtOnce = 25;

/** Children of one parent that has ended, so that every machine of a sandbox is a child's. */
export function idleRow({ idleChildren, idleMs }: Scale): Row {
  const what = `${idleChildren} idle forked children`;
  const memory: Line = { what: `${what}: unique memory of each`, unit: "MiB", judge: "median", reach: { atMost: 45 }, aim: { atMost: 30 } };
  const processes: Line = { what: `${what}: host processes of each`, unit: "processes", judge: "median" };
  const cpu: Line = { what: `${what}: processor time of all`, unit: "% of a core", judge: "median" };
  return {
    name: "idle",
    lines: [memory, processes, cpu],
    roundsShare: 1 / 5,
    async open({ server, signal }) {
      const parent = await server.create();
      const children: Sandbox[] = [];
      while (children.length < idleChildren && !signal.aborted)
        children.push(...(await parent.fork(Math.min(forkedAtOnce, idleChildren - children.length))));
      await parent.terminate();
      await server.machines.atRest();
      return {
        steps: [
          async () => {
            const machines = await server.machines.ofSandboxes();
            if (machines.length !== idleChildren) throw new Error(`${idleChildren} children have ${machines.length} machines`);
            const share = await cpuShare(machines, idleMs);
            const samples = [ours(cpu, share * 100)];
            for (const machine of machines) {
              samples.push(ours(memory, (await uniqueBytes(machine)) / 2 ** 20));
              samples.push(ours(processes, (await processesOf(machine)).length));
            }
            return samples;
          },
        ],
        async [Symbol.asyncDispose]() {
          for (let from = 0; from < children.length; from += forkedAtOnce) {
            await Promise.all(children.slice(from, from + forkedAtOnce).map((child) => child.terminate()));
          }
        },
      };
    },
  };
}
