import type { Sandbox } from "@mitos/sdk";
import { baseline, type Line, ours, type Row } from "../row.ts";
import type { Scale } from "../scale.ts";
import { timedMs } from "../statistics.ts";

const file = new Uint8Array(64 * 1024).fill(1);

/** What each client does in turn. */
const operations: readonly ((sandbox: Sandbox, client: number) => Promise<unknown>)[] = [
  (sandbox) => sandbox.exec("true"),
  (sandbox, client) => sandbox.files.write(`/workspace/client-${client}`, file),
  (sandbox, client) => sandbox.files.readBytes(`/workspace/client-${client}`),
];

/** Clients that each ask for the next as soon as they have the last, against one alone with the same sandboxes. */
export function clientsRow({ clients, clientSandboxes, clientsMs }: Scale): Row {
  const what = `${clients} clients, exec and files, ${clientSandboxes} sandboxes`;
  const throughput: Line = {
    what: `${what}: operations`,
    baseline: "1 client",
    unit: "per s",
    judge: "ratio",
    reach: { atLeast: 1.5 },
  };
  const latency: Line = { what: `${what}: one operation`, baseline: "1 client", unit: "ms", judge: "tail", reach: { atMost: 10 } };
  return {
    name: "clients",
    lines: [throughput, latency],
    roundsShare: 1 / 3,
    async open({ server }) {
      const sandboxes: Sandbox[] = [];
      for (let index = 0; index < clientSandboxes; index++) sandboxes.push(await server.create());
      // Every file is there when it is first read.
      for (let client = 0; client < clients; client++) await operations[1]!(sandboxes[client % clientSandboxes]!, client);
      await server.machines.atRest();
      const measure = async (count: number, sample: typeof ours) => {
        const latencies: number[] = [];
        const started = performance.now();
        const work = async (client: number) => {
          for (let turn = client; performance.now() - started < clientsMs; turn++) {
            const sandbox = sandboxes[client % clientSandboxes]!;
            latencies.push(await timedMs(() => operations[turn % operations.length]!(sandbox, client)));
          }
        };
        await Promise.all(Array.from({ length: count }, (_, client) => work(client)));
        const seconds = (performance.now() - started) / 1000;
        return [sample(throughput, latencies.length / seconds), ...latencies.map((ms) => sample(latency, ms))];
      };
      return {
        steps: [() => measure(clients, ours), () => measure(1, baseline)],
        async [Symbol.asyncDispose]() {
          await Promise.all(sandboxes.map((sandbox) => sandbox.terminate()));
        },
      };
    },
  };
}
