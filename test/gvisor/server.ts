/** A server to be killed: has one machine, one ready container, tells the machine's id, and waits. `server.ts <data dir>` */

import { createGvisorDriver, defaultRuntimeDir } from "../../packages/engine/src/drivers/gvisor/index.ts";
import { boot, newSpec, run } from "./sandbox.ts";

const dataDir = process.argv[2]!;
const log = { debug() {}, info() {}, warn: console.error, error: console.error };
const driver = await createGvisorDriver({ dataDir, runtimeDir: await defaultRuntimeDir(dataDir), log });
driver.prepare({ root: { kind: "host" }, resources: newSpec().resources }, 1);
const sandbox = await boot(driver);
await run(sandbox, "echo kept > /tmp/kept");
console.log(sandbox.machine.machineId);
setInterval(() => {}, 1_000);
