import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { expect, it } from "vitest";
import { probeFirecracker } from "../../packages/engine/src/drivers/firecracker/probe.ts";
import { quiet } from "../support/live-server.ts";

const dataDir = await mkdtemp(path.join(tmpdir(), "mitos-fc-real-"));
const result = await probeFirecracker({ dataDir, runtimeDir: `${dataDir}-run`, log: quiet });
// Here and not in a hook: none runs when all tests are skipped.
await rm(dataDir, { recursive: true, force: true });
const lacksPart = /was not found|has not been set up|needs KVM/.test(result.detail);
if (lacksPart && process.env.MITOS_REQUIRE_FIRECRACKER) throw new Error(`Firecracker cannot run here: ${result.detail}`);
if (lacksPart) console.log(`not run: sandboxes of Firecracker itself, since ${result.detail}`);

it.skipIf(lacksPart)("Firecracker itself boots a machine, saves it and restores it, and both answer", () => {
  expect(result).toMatchObject({ usable: true, detail: expect.stringContaining("booted, saved and restored") });
});
