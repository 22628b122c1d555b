/**
 * The whole life of a machine and of three children of a live fork, checked from inside and outside. Run by `driver.test.ts` as the user of the
 * test run, and as a program of its own as a user without any rights: `life-cycle.ts <data dir>`.
 */

import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { mkdir, rm } from "node:fs/promises";
import path from "node:path";
import type { Driver } from "../../packages/engine/src/driver.ts";
import { createGvisorDriver } from "../../packages/engine/src/drivers/gvisor/index.ts";
import { defaultRuntimeDir } from "../../packages/engine/src/drivers/host/layout.ts";
import { leftovers } from "./leftovers.ts";
import { adopt, boot, end, newSpec, run, saved, start } from "./sandbox.ts";

const quiet = { debug() {}, info() {}, warn() {}, error: console.error };

/** What programs may use, with cgroups or without. */
async function limits(driver: Driver): Promise<void> {
  const bombed = await boot(driver);
  const forks = `python3 -c '
import os, time
while True:
    try:
        if os.fork() == 0: time.sleep(1000)
    except OSError as error: print(error.strerror, flush=True); break
'`;
  assert.equal(await run(bombed, `${forks}; pkill -9 python3; true`), "Resource temporarily unavailable");
  await end(bombed);

  const hungry = await boot(driver, { memSizeMiB: 128 });
  await start(hungry, "exec python3 -c 'held = []\nwhile True: held.append(bytearray(os.urandom(1) * (1 << 20)))' || true");
  await start(hungry, "exec python3 -c 'x = bytearray(400 << 20); import time; time.sleep(1000)'");
  const exit = await hungry.machine.exited;
  assert.equal(exit.reason, "oom_killed");
  assert.match(exit.detail, /limit of 128 MiB/);
}

export async function lifeCycle(dataDir: string): Promise<void> {
  await mkdir(dataDir, { recursive: true });
  const runtimeDir = await defaultRuntimeDir(dataDir);
  const driver = await createGvisorDriver({ dataDir, runtimeDir, log: quiet });
  try {
    await driver.sweep(new Set());
    const parent = await boot(driver);
    await run(parent, "echo from the parent > /workspace/kept; echo outside > /usr/local/mitos-test-witness");
    await start(parent, "cd /workspace && exec python3 -m http.server 8123 --bind 127.0.0.1");
    const fetchKept = `python3 -c '
import time, urllib.request
for attempt in range(200):
    try: print(urllib.request.urlopen("http://127.0.0.1:8123/kept", timeout=5).read().decode()); break
    except OSError: time.sleep(0.05)
'`;
    assert.equal(await run(parent, fetchKept), "from the parent");
    const serverPid = await run(parent, "pgrep -f http.server | head -1");

    driver.prepare(parent.machine, 1);
    const snapshot = await saved(parent, () =>
      driver.snapshot(parent.machine, path.join(dataDir, "fork"), { leaveRunning: true, durable: false }),
    );
    assert.ok(snapshot.bytes > 0);
    assert.equal(await run(parent, "cat /workspace/kept"), "from the parent", "the parent goes on");

    const children = await Promise.all([1, 2, 3].map(async () => adopt(await driver.restore(snapshot, newSpec()))));
    await Promise.all(
      children.map(async (child, index) => {
        assert.equal(await run(child, fetchKept), "from the parent", "the server answers in the child");
        assert.equal(await run(child, "pgrep -f http.server | head -1"), serverPid, "it is the same process");
        assert.equal(await run(child, "hostname"), child.machine.machineId);
        assert.equal(await run(child, "cat /usr/local/mitos-test-witness"), "outside");
        await run(child, `echo ${index} > /workspace/kept`);
      }),
    );
    for (const [index, child] of children.entries()) assert.equal(await run(child, "cat /workspace/kept"), String(index));
    assert.equal(await run(parent, "cat /workspace/kept"), "from the parent", "children write for themselves alone");

    const metered = await children[0]!.machine.meter();
    assert.ok(metered.memoryBytes > 4 * 1024 * 1024 && metered.cpuMs > 0, JSON.stringify(metered));

    await end(parent, ...children);
    for (const { machine } of [parent, ...children]) assert.equal((await machine.exited).reason, "terminated");
    await rm(snapshot.dir, { recursive: true });
    await limits(driver);
  } finally {
    await driver.close();
  }
  assert.deepEqual(await leftovers(dataDir, runtimeDir), []);
  assert.equal(existsSync(runtimeDir), false);
}

if (process.argv[1] === import.meta.filename) await lifeCycle(process.argv[2]!);
