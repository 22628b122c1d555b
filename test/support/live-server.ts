import { mkdtempSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import type { Engine, EngineOptions, ImageOptions, Log } from "@mitos/engine";
import { type CreateOptions, create, type Sandbox, SandboxServer } from "@mitos/sdk";
import { startServer } from "@mitos/server";
import { expect } from "vitest";
import { pickDriver } from "../../packages/engine/src/drivers/pick.ts";
import type { EgressNetwork } from "../../packages/engine/src/egress/network.ts";
import { openEngineWith } from "../../packages/engine/src/engine.ts";
import { engineOptions } from "./engine-under-test.ts";
import { keepProbes, lendProbes } from "./kept-probes.ts";
import { noTraces, Tracker } from "./traces.ts";

/** A server with an engine (the real one unless said otherwise) in this process, on a port of its own, with a data directory of its own. */
export interface LiveServer {
  readonly url: string;
  readonly engine: Engine;
  readonly dataDir: string;
  create(options?: Omit<CreateOptions, "baseUrl">): Promise<Sandbox>;
  /**
   * The same with this much memory instead of the default: from a template that is built with it when it is first asked for, since a virtual machine
   * keeps the memory of its template.
   */
  createWithMemory(memSizeMiB: number, options?: Omit<CreateOptions, "baseUrl" | "template" | "resources">): Promise<Sandbox>;
  /** Ends everything and fails when a process, mount, cgroup, socket or file is left. */
  close(): Promise<void>;
}

/**
 * @param egressNetwork - instead of the host's
 * @param images - where they come from. Default: from Docker Hub
 */
export async function startLiveServer(
  kind: EngineKind = "real",
  egressNetwork?: EgressNetwork,
  images?: ImageOptions,
): Promise<LiveServer> {
  const { engine, dataDir, close } = await startLiveEngine(kind, egressNetwork, images);
  const server = await startServer({ engine, host: "127.0.0.1", port: 0, log: quiet, version: "test" });
  const baseUrl = server.url;
  return {
    url: server.url,
    engine,
    dataDir,
    create: (options = {}) => create({ ...options, baseUrl }),
    async createWithMemory(memSizeMiB, options = {}) {
      const template = `memory-${memSizeMiB}`;
      await new SandboxServer(baseUrl).ensureTemplate(template, { resources: { memSizeMiB } });
      return create({ ...options, template, baseUrl });
    },
    async close() {
      await server.close();
      await close();
    },
  };
}

/** `real`: the engine that the suites are run on. */
type EngineKind = "real" | "mock";

/** An engine in this process, with a data directory of its own. */
export interface LiveEngine {
  readonly engine: Engine;
  readonly dataDir: string;
  /**
   * Ends everything and fails when a process, mount, cgroup, socket or file is left.
   *
   * @param current - the engine that is open now, when the test has closed the first one and opened the data directory again
   */
  close(current?: Engine): Promise<void>;
}

export async function startLiveEngine(
  kind: EngineKind = "real",
  egressNetwork?: EgressNetwork,
  images?: ImageOptions,
): Promise<LiveEngine> {
  const dataDir = mkdtempSync(path.join(os.tmpdir(), "mitos-test-"));
  if (kind === "real") lendProbes(dataDir);
  const tracker = new Tracker(dataDir);
  const options: EngineOptions = { dataDir, ...(kind === "mock" ? { engine: "mock" } : engineOptions), log: quiet, images };
  const engine = await openEngineWith(options, { pickDriver: () => pickDriver(options), ...(egressNetwork ? { egressNetwork } : {}) });
  if (kind === "real") keepProbes(dataDir);
  return {
    engine,
    dataDir,
    async close(current = engine) {
      await current.close({ sandboxes: "end" });
      rmSync(dataDir, { recursive: true, force: true });
      expect(tracker.find()).toEqual(noTraces);
    },
  };
}

/** Tests speak through expectations; what goes wrong inside is printed. */
export const quiet: Log = {
  debug: () => undefined,
  info: () => undefined,
  warn: (fields, message) => console.warn(message, fields),
  error: (fields, message) => console.error(message, fields),
};
