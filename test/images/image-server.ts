import { mkdtempSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { type Engine, type ImageOptions, openEngine } from "@mitos/engine";
import { type CreateOptions, create, Sandbox, SandboxServer } from "@mitos/sdk";
import { startServer } from "@mitos/server";
import { expect } from "vitest";
import { engineOptions } from "../support/engine-under-test.ts";
import { quiet } from "../support/live-server.ts";
import { noTraces, Tracker } from "../support/traces.ts";

/** No credentials but those that a test gives. */
const noDockerConfig = path.join(os.tmpdir(), "mitos-no-docker-config", "config.json");

/** A data directory with a server that makes sandboxes of images. Disposing of it fails when something is left. */
export class ImageServer implements AsyncDisposable {
  readonly dataDir = mkdtempSync(path.join(os.tmpdir(), "mitos-images-"));
  readonly #tracker = new Tracker(this.dataDir);
  engine!: Engine;
  #server!: Awaited<ReturnType<typeof startServer>>;

  static async start(images: ImageOptions = {}): Promise<ImageServer> {
    const server = new ImageServer();
    await server.#open(images);
    return server;
  }

  async #open(images: ImageOptions): Promise<void> {
    const options = { dataDir: this.dataDir, ...engineOptions, log: quiet, images: { dockerConfig: noDockerConfig, ...images } } as const;
    this.engine = await openEngine(options);
    this.#server = await startServer({ engine: this.engine, host: "127.0.0.1", port: 0, log: quiet, version: "test" });
  }

  /** The next server on the same data directory, which takes up what this one leaves. */
  async restart(images: ImageOptions = {}): Promise<void> {
    await this.#server.close();
    await this.engine.close({ sandboxes: "keep" });
    await this.#open(images);
  }

  get api(): SandboxServer {
    return new SandboxServer(this.#server.url);
  }

  create(options: string | Omit<CreateOptions, "baseUrl">): Promise<Sandbox> {
    return create({ ...(typeof options === "string" ? { template: options } : options), baseUrl: this.#server.url });
  }

  /** A sandbox that was made before. */
  reach(id: string): Sandbox {
    return new Sandbox({ id, endpoint: this.#server.url });
  }

  /** One folder for each unpacked layer, by its digest. */
  get layersDir(): string {
    return path.join(this.dataDir, "layers");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server.close();
    await this.engine.close({ sandboxes: "end" });
    rmSync(this.dataDir, { recursive: true, force: true });

    expect(this.#tracker.find()).toEqual(noTraces);
  }
}
