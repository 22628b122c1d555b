import { resourceDefaults } from "@mitos/protocol";
import type { Sandbox } from "@mitos/sdk";
import { BenchServer } from "../bench-server.ts";
import { holdState } from "../rows/state.ts";
import { median, timedMs } from "../statistics.ts";
import { type WarmUp, warmUp } from "../warm-up.ts";
import { type Part, partsOf } from "./parts.ts";
import type { Path } from "./picture.ts";
import { TraceSink } from "./trace-sink.ts";

interface Asked {
  readonly what: string;
  /** The request's span, and spans that must be in its trace. */
  readonly root: string;
  readonly spans: readonly string[];
  /** @returns how long the client waited, in ms */
  run(server: BenchServer, sandbox: Sandbox, round: number): Promise<number>;
}

const stateMiB = 30;

const asked: readonly Asked[] = [
  {
    what: "create, a machine waits",
    root: "POST /v1/fork",
    spans: ["engine.create", "engine.adopt"],
    run: (server) => timedStart(server, "pooled", {}),
  },
  {
    what: "create, nothing is ready",
    root: "POST /v1/fork",
    spans: ["engine.create", "engine.restore", "engine.adopt"],
    // Nothing can be ready for an amount of memory that nobody has asked for yet.
    run: (server, _, round) => timedStart(server, "unprepared", { resources: { memSizeMiB: resourceDefaults.memSizeMiB + 1 + round } }),
  },
  {
    what: "exec of `true`",
    root: "POST /sandbox.v1.Sandbox/ExecStream",
    spans: ["link.Exec", "agent.Exec"],
    run: (_, sandbox) => timedMs(() => sandbox.exec("true")),
  },
  {
    what: '`runCode("1+1")`',
    root: "POST /sandbox.v1.Sandbox/RunCodeStream",
    spans: ["link.RunCode", "agent.RunCode"],
    run: (_, sandbox) => timedMs(() => sandbox.runCode("1+1")),
  },
  {
    what: `fork(1), ${stateMiB} MiB of interpreter state`,
    root: "POST /v1/sandboxes/:id/fork",
    spans: ["engine.fork", "engine.snapshot", "engine.restore", "engine.adopt"],
    async run(_, sandbox) {
      let child: Sandbox | undefined;
      const ms = await timedMs(async () => ([child] = await sandbox.fork(1)));
      await child?.terminate();
      return ms;
    },
  },
];

async function timedStart(server: BenchServer, way: "pooled" | "unprepared", options: Parameters<BenchServer["create"]>[0]) {
  let created: Sandbox | undefined;
  const ms = await server.start(way, () => timedMs(async () => (created = await server.create(options))));
  await created?.terminate();
  return ms;
}

export interface ProfileOptions {
  readonly rounds: number;
  readonly warmUp: WarmUp;
  readonly say: (what: string) => void;
}

/** Where the time of each hot path goes, by the traces of a server of its own. Medians of each part, so that they add up to about the median. */
export async function measurePaths({ rounds, warmUp: calls, say }: ProfileOptions): Promise<readonly Path[]> {
  await using sink = await TraceSink.open();
  await using server = await BenchServer.start({ env: sink.env });
  say("letting the server serve some hundred calls before anything is measured");
  await warmUp(server, calls);
  const sandbox = await server.create();
  await holdState(sandbox, stateMiB);
  await Promise.all([sandbox.exec("true"), sandbox.fork(1).then(([child]) => child?.terminate())]);
  const seen = new Map<string, Map<string, number[]>>();
  for (let round = 0; round < rounds; round += 1) {
    say(`round ${round + 1} of ${rounds}`);
    for (const { what, root, spans, run } of asked) {
      await server.machines.atRest();
      sink.clear();
      const totalMs = await run(server, sandbox, round);
      record(seen, what, partsOf(totalMs, await sink.newest(root, [root, ...spans])));
    }
  }
  await sandbox.terminate();
  return [...seen].map(([what, parts]) => ({ what, parts: [...parts].map(([part, samples]) => ({ what: part, ms: median(samples) })) }));
}

function record(seen: Map<string, Map<string, number[]>>, what: string, parts: readonly Part[]): void {
  const known = seen.get(what) ?? new Map<string, number[]>();
  seen.set(what, known);
  for (const part of parts) known.set(part.what, [...(known.get(part.what) ?? []), part.ms]);
}
