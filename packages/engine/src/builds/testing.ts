/** For tests of builds: stores in memory, and machines whose programs are functions. */

import { createHash } from "node:crypto";
import { MitosError } from "@mitos/protocol";
import type { BuildEvent, ImageSummary, ProcessEvent, ProcessStart, Runtime } from "../actions.ts";
import type { Adoption, ConnectGuest, Guest } from "../guest.ts";
import type { Image, ImageConfig } from "../images/image.ts";
import type { Digest, Layer, LayerUse } from "../layers/layer.ts";
import type { Images, Layers } from "../stores.ts";
import { emptyConfig } from "./config.ts";
import { killAll } from "./run-step.ts";

export function digestOf(content: string | Uint8Array): Digest {
  return `sha256:${createHash("sha256").update(content).digest("hex")}`;
}

/** Layers without files: what they hold is what they are made of. */
export class MemoryLayers implements Layers {
  readonly #layers = new Map<Digest, Layer>();
  readonly #uses = new Map<Digest, number>();

  add(content: string): Layer {
    const id = digestOf(content);
    const layer = { id, dir: `/nowhere/${id}`, bytes: content.length, entries: content === "" ? 0 : 1 };
    this.#layers.set(id, layer);
    return layer;
  }

  has(id: Digest): boolean {
    return this.#layers.has(id);
  }

  get(id: Digest): Layer | undefined {
    return this.#layers.get(id);
  }

  async addChanges(changes: AsyncIterable<Uint8Array>): Promise<Layer> {
    return this.add(Buffer.concat(await Array.fromAsync(changes)).toString());
  }

  /** Nothing copied to a folder that is there already, which is every one below `/usr`, makes an empty layer. */
  async addCopy(tar: AsyncIterable<Uint8Array>, _base: readonly Layer[], { dest }: { dest: string }): Promise<Layer> {
    const content = Buffer.concat(await Array.fromAsync(tar)).toString();
    return this.add(dest.startsWith("/usr/") && /^\0*$/.test(content) ? "" : `${dest} ${digestOf(content)}`);
  }

  use(ids: readonly Digest[]): LayerUse {
    const layers = ids.map((id) => {
      const layer = this.#layers.get(id);
      if (!layer) throw new MitosError("not_found", { cause: `no layer ${id}` });
      return layer;
    });
    return { layers, ...this.hold(ids) };
  }

  hold(ids: readonly Digest[]): Disposable {
    for (const id of ids) this.#uses.set(id, (this.#uses.get(id) ?? 0) + 1);
    let held = true;
    return {
      [Symbol.dispose]: () => {
        for (const id of held ? ids : []) this.#uses.set(id, (this.#uses.get(id) ?? 1) - 1);
        held = false;
      },
    };
  }

  /** Who used them has ended. */
  forgetUses(): void {
    this.#uses.clear();
  }

  async usage() {
    return [...this.#layers.values()].map(({ id, bytes }) => ({ id, bytes, lastUsedAtMs: 0, inUse: this.isInUse(id) }));
  }

  isInUse(id: Digest): boolean {
    return (this.#uses.get(id) ?? 0) > 0;
  }

  async collect(keep: ReadonlySet<Digest>, { olderThanMs, bytesMax }: { olderThanMs: number; bytesMax?: number }): Promise<number> {
    if (olderThanMs > 0 && bytesMax === undefined) return 0;
    const unused = [...this.#layers.values()].filter(({ id }) => !keep.has(id) && !this.isInUse(id));
    for (const { id } of unused) this.#layers.delete(id);
    return unused.reduce((sum, { bytes }) => sum + bytes, 0);
  }
}

/** A registry and what was pulled from it, in one. */
export class MemoryImages implements Images {
  hasOwnRegistry = false;
  pulls = 0;
  resolves = 0;
  /** Called when a layer has come, while the pull goes on. */
  onLayer: () => void | Promise<void> = () => {};
  readonly pushed: { image: Parameters<Images["push"]>[0]; reference: string }[] = [];
  readonly #layers: MemoryLayers;
  readonly #remote = new Map<string, Image>();
  readonly #known = new Map<string, Image>();
  readonly #contexts = new Map<Digest, Uint8Array>();

  constructor(layers: MemoryLayers) {
    this.#layers = layers;
  }

  /** What the registry has from now on under that tag. */
  publish(reference: string, content: string, config: Partial<ImageConfig> = {}): Image {
    const full = this.normalize(reference);
    const layers = [{ id: digestOf(content), origin: null }];
    const image: Image = { reference: full, digest: digestOf(`manifest of ${content}`), config: { ...emptyConfig, ...config }, layers };
    this.#remote.set(full, image);
    this.#contents.set(digestOf(content), content);
    return image;
  }

  readonly #contents = new Map<Digest, string>();

  normalize(reference: string): string {
    return reference.includes("/") ? reference : `docker.io/library/${reference}`;
  }

  async resolve(reference: string) {
    this.resolves += 1;
    const image = this.#remote.get(this.normalize(reference));
    if (!image) throw new MitosError("not_found", { cause: `no image ${reference}` });
    return { reference: image.reference, digest: image.digest };
  }

  async pull(reference: string, { pull = false, hold = () => {} }: Parameters<Images["pull"]>[1] = {}): Promise<Image> {
    const known = this.#known.get(this.normalize(reference));
    if (known && !pull && known.layers.every(({ id }) => this.#layers.has(id))) {
      hold(known.layers.map(({ id }) => id));
      return known;
    }
    this.pulls += 1;
    await this.resolve(reference);
    const image = this.#remote.get(this.normalize(reference)) as Image;
    hold(image.layers.map(({ id }) => id));
    for (const { id } of image.layers) {
      this.#layers.add(this.#contents.get(id) ?? "");
      await this.onLayer();
    }
    this.#known.set(image.reference, image);
    return image;
  }

  known(reference: string): Image | undefined {
    return this.#known.get(this.normalize(reference));
  }

  async push(image: Parameters<Images["push"]>[0], reference: string) {
    this.pushed.push({ image, reference });
    return { reference, digest: digestOf(JSON.stringify(image)) };
  }

  list(): readonly ImageSummary[] {
    return [...this.#known.values()].map(({ reference, digest, layers }) => ({
      reference,
      digest,
      layers: layers.length,
      rootBytes: 0,
      pulledAtMs: 0,
      lastUsedAtMs: 0,
    }));
  }

  async putContext(digest: Digest, tar: AsyncIterable<Uint8Array>): Promise<void> {
    this.#contexts.set(digest, Buffer.concat(await Array.fromAsync(tar)));
  }

  async hasContext(digest: Digest): Promise<boolean> {
    return this.#contexts.has(digest);
  }

  async *openContext(digest: Digest): AsyncGenerator<Uint8Array> {
    const content = this.#contexts.get(digest);
    if (!content) throw new MitosError("not_found", { cause: `no context ${digest}` });
    yield content;
  }

  async cacheBytes(): Promise<number> {
    return [...this.#contexts.values()].reduce((sum, { byteLength }) => sum + byteLength, 0);
  }

  async collect({ olderThanMs, bytesMax }: Parameters<Images["collect"]>[0]): Promise<number> {
    if (olderThanMs > 0 && bytesMax === undefined) return 0;
    const bytes = await this.cacheBytes();
    this.#contexts.clear();
    return bytes;
  }
}

/** What a program of a machine of a build does. Its answer is its exit code; what it changes is what it says it does. */
export type Program = (start: ProcessStart, say: (text: string) => void, signal: AbortSignal) => number | Promise<number>;

/** Guests over the mock agent whose programs are these functions; a changed file is the text of the command. */
export function programmed(real: ConnectGuest, program: Program, seen: { adoptions: Adoption[]; commands: string[] }): ConnectGuest {
  return (machine, hooks) => {
    const guest = real(machine, hooks);
    let changed = "";
    const ended = new AbortController();
    void machine.exited.then(() => ended.abort(new Error("the machine has ended")));
    const exec = async function* (start: ProcessStart): AsyncGenerator<ProcessEvent> {
      const command = `/bin/sh -c ${start.argv?.at(-1)}`;
      if (start.argv?.at(-1) === killAll || start.argv?.at(-1) === "version") return;
      seen.commands.push(command);
      yield { kind: "started", pid: 7, startedUnixMs: 0 };
      const said: string[] = [];
      let wake = Promise.withResolvers<void>();
      const say = (text: string): void => {
        said.push(text);
        wake.resolve();
        wake = Promise.withResolvers<void>();
      };
      let exitCode: number | undefined;
      const gone = new Promise<never>((_, reject) => ended.signal.addEventListener("abort", () => reject(ended.signal.reason)));
      gone.catch(() => undefined);
      const done = Promise.resolve(program(start, say, ended.signal)).then((code) => {
        exitCode = code;
      });
      while (exitCode === undefined || said.length > 0) {
        const text = said.shift();
        if (text !== undefined) yield { kind: "output", stream: "stdout", offset: 0, data: Buffer.from(text) };
        else await Promise.race([done, wake.promise, gone]);
      }
      changed = command;
      yield { kind: "exit", exitCode, signal: 0, timedOut: false, execTimeMs: 1, error: "" };
    };
    return {
      ...guest,
      open: async (adoption) => {
        if (adoption) seen.adoptions.push(adoption);
        await guest.open(adoption);
      },
      changes: async function* () {
        yield Buffer.from(changed);
      },
      runtime: { ...guest.runtime, exec: exec as unknown as Runtime["exec"] },
    } satisfies Guest;
  };
}

export function kinds(events: readonly BuildEvent[]): string[] {
  return events.map((event) =>
    event.kind === "step" ? `step ${event.index} ${event.state}` : event.kind === "phase" ? event.phase : event.kind,
  );
}
