import type { Sandbox } from "@mitos/sdk";
import { until } from "../../support/until.ts";
import type { BenchServer } from "../bench-server.ts";
import { cpuMs } from "../machines.ts";
import { baseline, type Line, ours, type Row, type Sample } from "../row.ts";
import type { Scale } from "../scale.ts";
import { timedMs } from "../statistics.ts";

/** What a neighbour does while the execs of a sandbox that behaves are measured. */
const misbehaving = {
  "computes in four processes": "for i in 1 2 3 4; do while :; do :; done & done; wait",
  "forks without end": "bomb() { bomb | bomb & }; while :; do bomb; sleep 0.1; done",
  "prints without end": "yes",
};
/** Until it has used so much processor time it has not begun in earnest. */
const begunMs = 1_000;

export function neighboursRow({ neighbourSamples }: Scale): Row {
  const neighbours = Object.entries(misbehaving).map(([what, command]) => {
    const line: Line = { what: `exec of \`true\` while a neighbour ${what}`, baseline: "exec of `true`", unit: "ms", judge: "ratio" };
    return { line, command };
  });
  const lines = neighbours.map(({ line }) => line);
  return {
    name: "neighbours",
    lines,
    roundsShare: 1 / 5,
    async open({ server }) {
      const sandbox = await server.create();
      await server.machines.atRest();
      const execs = async (sample: (ms: number) => readonly Sample[]) => {
        const samples: Sample[] = [];
        for (let index = 0; index < neighbourSamples; index++) samples.push(...sample(await timedMs(() => sandbox.exec("true"))));
        return samples;
      };
      return {
        steps: [
          () => execs((ms) => lines.map((line) => baseline(line, ms))),
          ...neighbours.map(({ line, command }) => async () => {
            const neighbour = await startNeighbour(server, command);
            try {
              return await execs((ms) => [ours(line, ms)]);
            } finally {
              await neighbour.terminate();
              await server.machines.atRest();
            }
          }),
        ],
        async [Symbol.asyncDispose]() {
          await sandbox.terminate();
        },
      };
    },
  };
}

async function startNeighbour(server: BenchServer, command: string): Promise<Sandbox> {
  const neighbour = await server.create({ resources: { processesMax: 128 } });
  await server.machines.atRest();
  const before = await cpuMs(await server.machines.ofSandboxes());
  await neighbour.execBackground(["sh", "-c", command]).started;
  await until("the neighbour is busy", async () => (await cpuMs(await server.machines.ofSandboxes())) - before > begunMs);
  return neighbour;
}
