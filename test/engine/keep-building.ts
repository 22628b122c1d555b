/** A server's engine in a process of its own, to be killed: begins a build whose second step never ends, prints `ready` when that runs, and waits. */

import { openEngine } from "@mitos/engine";
import { resourceDefaults, toTemplateId } from "@mitos/protocol";
import { engineOptions } from "../support/engine-under-test.ts";

const log = { debug: () => {}, info: () => {}, warn: console.error, error: console.error };
const [dataDir, image] = process.argv.slice(2);
if (!dataDir || !image) throw new Error("usage: keep-building.ts DATA_DIR IMAGE");
const engine = await openEngine({ dataDir, ...engineOptions, log });
const network = { block: false, egress: "deny", allowDomains: [], allowCidrs: [], inbound: "deny", inboundCidrs: [] } as const;
const steps = [
  { kind: "run", command: "echo done > /srv/done" },
  { kind: "run", command: "echo begun; sleep 1000" },
] as const;
await engine.createTemplate(
  { id: toTemplateId("unfinished"), image, steps, network, resources: resourceDefaults },
  { onEvent: (event) => event.kind === "log" && process.stdout.write("ready\n") },
);
