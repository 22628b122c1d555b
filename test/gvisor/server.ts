/** A server to be killed: has one machine, one ready container, tells the machine's id, and waits. `server.ts <data dir>` */

import { createGvisorDriver } from "../../packages/engine/src/drivers/gvisor/index.ts";
import { defaultRuntimeDir } from "../../packages/engine/src/drivers/host/layout.ts";
import { boot, run } from "./sandbox.ts";

const dataDir = process.argv[2]!;
const log = { debug() {}, info() {}, warn: console.error, error: console.error };
const driver = await createGvisorDriver({ dataDir, runtimeDir: await defaultRuntimeDir(dataDir), log });
const sandbox = await boot(driver);
driver.prepare(sandbox.machine, 1);
await run(sandbox, "echo kept > /tmp/kept");
console.log(sandbox.machine.machineId);
setInterval(() => {}, 1_000);
