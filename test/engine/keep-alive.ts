/** A server's engine in a process of its own, to be killed: starts a sandbox with a process in it, prints `ready`, and waits. */

import { Readable } from "node:stream";
import { openEngine } from "@mitos/engine";
import { resourceDefaults, toSandboxId, toTemplateId } from "@mitos/protocol";
import { engineOptions } from "../support/engine-under-test.ts";

const log = { debug: () => {}, info: () => {}, warn: console.error, error: console.error };
const dataDir = process.argv[2];
if (!dataDir) throw new Error("usage: keep-alive.ts DATA_DIR");
const engine = await openEngine({ dataDir, ...engineOptions, log });
const template = toTemplateId("base");
const network = { block: false, egress: "deny", allowDomains: [], allowCidrs: [], inbound: "deny", inboundCidrs: [] } as const;
await engine.createTemplate({ id: template, network, resources: resourceDefaults });
const names = ["survivor", "sleeper"];
for (const name of names) {
  const id = toSandboxId(name);
  const request = { template, id, env: {}, secrets: {}, timeoutSeconds: null, idleTimeoutSeconds: null, metadata: {} };
  await engine.create(request);
  const runtime = engine.runtime(id);
  // Written before the process is started: that one may not have come to its first step when the server is killed.
  await runtime.writeFile("/workspace/name", 0o644, Readable.from([Buffer.from(`${name}\n`)]));
  await runtime.start({ shellCommand: "exec sleep 1000" });
}
await engine.pause(toSandboxId("sleeper"));
process.stdout.write("ready\n");
setInterval(() => {}, 60_000);
