import { createHash } from "node:crypto";
import { appendFile, type FileHandle, mkdir, open, readdir, rm, stat } from "node:fs/promises";
import path from "node:path";
import { catalogue, MitosError, type TemplateId } from "@mitos/protocol";
import type { BuildEvent, Log } from "../actions.ts";
import type { Clock } from "../clock.ts";

/** Of one build's log. What is said beyond it is told to those who listen, and not kept. */
const logBytesMax = 16 * 1024 * 1024;
/** Logs that are kept, one for each name; the oldest go first. */
const logsMax = 1_000;
/** How often the progress of one layer is worth a line. */
const progressEveryMs = 250;
/** A last line is looked for in this much of a log. */
const tailBytes = 64 * 1024;

/** An event as whoever makes it says it; its time is added. */
export type BuildEventBody = BuildEvent extends infer Event ? (Event extends BuildEvent ? Omit<Event, "atMs"> : never) : never;
export type Tell = (event: BuildEventBody) => void;

/** An event that a store has made itself, told anew. */
export function untimed({ atMs: _, ...event }: BuildEvent): BuildEventBody {
  return event;
}

/** The first line of a log: its file's name does not say it. */
interface Header {
  readonly id: TemplateId;
}

/**
 * What happened in the last build of each template, whether it is there by now or not: `<dataDir>/builds/<hash of its id>.ndjson`, a header and one event
 * a line. A log always ends with `done` or `failed`.
 */
export class BuildLogs {
  readonly #dir: string;
  readonly #log: Log;
  readonly #clock: Clock;
  /** Until the last of it is on the disk. */
  readonly #open = new Map<TemplateId, BuildLog>();

  private constructor(dir: string, log: Log, clock: Clock) {
    this.#dir = dir;
    this.#log = log;
    this.#clock = clock;
  }

  static async open(dataDir: string, log: Log, clock: Clock): Promise<BuildLogs> {
    const dir = path.join(dataDir, "builds");
    await mkdir(dir, { recursive: true, mode: 0o700 });
    const logs = new BuildLogs(dir, log, clock);
    await logs.#endWhatWasCutOff();
    return logs;
  }

  /** Takes the place of the last log of this name. */
  begin(id: TemplateId): BuildLog {
    const file = this.#fileOf(id);
    const before = this.#open.get(id)?.written ?? Promise.resolve();
    const log = new BuildLog(file, { id }, before, this.#clock, (error) =>
      this.#log.warn({ template: id, error: String(error) }, "the log of a build could not be written"),
    );
    this.#open.set(id, log);
    void log.written.then(() => {
      if (this.#open.get(id) === log) this.#open.delete(id);
    });
    return log;
  }

  /** @throws not_found */
  async *read(id: TemplateId, options: { readonly follow: boolean }, signal?: AbortSignal): AsyncGenerator<BuildEvent> {
    const open = this.#open.get(id);
    if (open) {
      yield* options.follow ? open.follow(signal) : open.soFar();
      return;
    }
    yield* await readLog(this.#fileOf(id), id);
  }

  async bytes(): Promise<number> {
    const sizes = (await this.#files()).map(async (file) => (await stat(file).catch(() => undefined))?.size ?? 0);
    return (await Promise.all(sizes)).reduce((sum, size) => sum + size, 0);
  }

  /** Removes logs that are older and whose templates are gone. @returns removed bytes */
  async collect(keep: ReadonlySet<TemplateId>, olderThanMs: number): Promise<number> {
    const filesOf = (ids: Iterable<TemplateId>) => new Set(Array.from(ids, (id) => this.#fileOf(id)));
    const kept = filesOf([...keep, ...this.#open.keys()]);
    const rest: { file: string; bytes: number; atMs: number }[] = [];
    for (const file of await this.#files()) {
      const found = kept.has(file) ? undefined : await stat(file).catch(() => undefined);
      if (found) rest.push({ file, bytes: found.size, atMs: found.mtimeMs });
    }
    rest.sort((a, b) => b.atMs - a.atMs);
    const untilMs = this.#clock.nowMs() - olderThanMs;
    const old = rest.filter(({ atMs }, index) => atMs <= untilMs || index >= logsMax);
    let removedBytes = 0;
    for (const { file, bytes, atMs } of old) {
      // Looked at again one by one: a build of that name may have begun meanwhile.
      const now = await stat(file).catch(() => undefined);
      if (now?.mtimeMs !== atMs || filesOf(this.#open.keys()).has(file)) continue;
      await rm(file, { force: true });
      removedBytes += bytes;
    }
    return removedBytes;
  }

  /** Ends what a build that would not end has left open. Resolves when all that was said is on the disk. */
  async close(): Promise<void> {
    for (const log of this.#open.values()) log.end(failure(serverEnded));
    await Promise.all([...this.#open.values()].map(({ written }) => written));
  }

  /** No path on the host is made of what a client says, and a name may hold slashes. */
  #fileOf(id: TemplateId): string {
    return path.join(this.#dir, `${createHash("sha256").update(id).digest("hex").slice(0, 32)}.ndjson`);
  }

  async #files(): Promise<string[]> {
    return (await readdir(this.#dir)).filter((name) => name.endsWith(".ndjson")).map((name) => path.join(this.#dir, name));
  }

  /** The server that wrote it died in the middle. */
  async #endWhatWasCutOff(): Promise<void> {
    for (const file of await this.#files()) {
      const last = await lastLine(file);
      if (/^\{.*"kind":"(done|failed)".*\}\n$/.test(last)) continue;
      const event: BuildEvent = { atMs: this.#clock.nowMs(), ...failure(serverEnded) };
      await appendFile(file, `${last.endsWith("\n") || last === "" ? "" : "\n"}${JSON.stringify(event)}\n`);
    }
  }
}

const serverEnded = new MitosError("unavailable", {
  message: "the server ended before the build did",
  remediation: "Create the template again: steps that were done are not run again.",
});

/** The events of one build, from its begin to its end. */
export class BuildLog {
  /** All of it is on the disk, or cannot be brought there. Never rejects. */
  readonly written: Promise<void>;
  readonly #clock: Clock;
  readonly #kept: BuildEvent[] = [];
  readonly #listeners = new Set<(event: BuildEvent) => void>();
  readonly #lastProgress = new Map<string, { state: string; atMs: number }>();
  readonly #done = Promise.withResolvers<void>();
  #changed = Promise.withResolvers<void>();
  #bytes = 0;
  #unwritten: string[] = [];
  #isFull = false;
  #isOver = false;

  constructor(file: string, header: Header, before: Promise<void>, clock: Clock, onError: (error: unknown) => void) {
    this.#clock = clock;
    this.written = this.#write(file, header, before).catch(onError);
  }

  /** Nothing is said after the end. */
  readonly add: Tell = (body) => {
    if (this.#isOver) return;
    const event: BuildEvent = { atMs: this.#clock.nowMs(), ...body };
    for (const listener of this.#listeners) listener(event);
    if (this.#isWorthKeeping(event)) this.#keep(event);
  };

  /** The last event, whatever else was too much. */
  end(body: BuildEventBody): void {
    if (this.#isOver) return;
    const event: BuildEvent = { atMs: this.#clock.nowMs(), ...body };
    for (const listener of this.#listeners) listener(event);
    this.#listeners.clear();
    this.#push(event);
    this.#isOver = true;
    this.#done.resolve();
  }

  /** Tells what was kept so far, and then everything. @returns ends the telling */
  listen(listener: (event: BuildEvent) => void): () => void {
    for (const event of this.#kept) listener(event);
    if (this.#isOver) return () => {};
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  soFar(): readonly BuildEvent[] {
    return [...this.#kept];
  }

  async *follow(signal?: AbortSignal): AsyncGenerator<BuildEvent> {
    const { promise: left, resolve: leave } = Promise.withResolvers<void>();
    signal?.addEventListener("abort", () => leave(), { once: true });
    for (let next = 0; !signal?.aborted; ) {
      const changed = this.#changed.promise;
      while (next < this.#kept.length) yield this.#kept[next++] as BuildEvent;
      if (this.#isOver) return;
      await Promise.race([changed, left]);
    }
    throw new MitosError("canceled");
  }

  #isWorthKeeping(event: BuildEvent): boolean {
    if (event.kind !== "layer") return true;
    const last = this.#lastProgress.get(event.digest);
    if (last?.state === event.state && event.atMs - last.atMs < progressEveryMs) return false;
    this.#lastProgress.set(event.digest, { state: event.state, atMs: event.atMs });
    return true;
  }

  #keep(event: BuildEvent): void {
    if (this.#isFull) return;
    if (this.#bytes >= logBytesMax) {
      this.#isFull = true;
      this.#push({ atMs: event.atMs, kind: "warning", text: `the log is longer than ${logBytesMax} bytes: the rest is not kept` });
    } else {
      this.#push(event);
    }
  }

  #push(event: BuildEvent): void {
    const line = `${JSON.stringify(event)}\n`;
    this.#bytes += line.length;
    this.#kept.push(event);
    this.#unwritten.push(line);
    this.#changed.resolve();
    this.#changed = Promise.withResolvers<void>();
  }

  async #write(file: string, header: Header, before: Promise<void>): Promise<void> {
    await before;
    await using output = await open(file, "w", 0o600);
    await output.writeFile(`${JSON.stringify(header)}\n`);
    for (;;) {
      const changed = this.#changed.promise;
      const isLast = this.#isOver;
      const lines = this.#unwritten.join("");
      this.#unwritten = [];
      if (lines) await output.writeFile(lines);
      else if (isLast) return;
      else await Promise.race([changed, this.#done.promise]);
    }
  }
}

/** How a failed build is told. */
export function failure(error: MitosError): Extract<BuildEventBody, { kind: "failed" }> {
  return {
    kind: "failed",
    code: error.code,
    message: error.detail.message ?? error.entry.message,
    cause: error.detail.cause ?? "",
    remediation: error.detail.remediation ?? catalogue[error.code].remediation,
  };
}

async function readLog(file: string, id: TemplateId): Promise<readonly BuildEvent[]> {
  const events: BuildEvent[] = [];
  let header: Header | undefined;
  for await (const line of linesOf(file)) {
    const parsed = parseLine(line);
    if (header) events.push(...(parsed ? [parsed as BuildEvent] : []));
    else header = parsed as Header | undefined;
    if (!header) break;
  }
  if (header?.id !== id) throw noLog(id);
  return events;
}

/** None for a file that is not there. */
async function* linesOf(file: string): AsyncGenerator<string> {
  let input: FileHandle;
  try {
    input = await open(file);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return;
    throw error;
  }
  // Closes the file, also when it is left early.
  yield* input.readLines();
}

/** A line that was cut off by a crash is nothing. */
function parseLine(line: string): unknown {
  try {
    return JSON.parse(line);
  } catch {
    return undefined;
  }
}

async function lastLine(file: string): Promise<string> {
  await using input = await open(file);
  const { size } = await input.stat();
  const { buffer, bytesRead } = await input.read(Buffer.alloc(Math.min(size, tailBytes)), 0, undefined, Math.max(0, size - tailBytes));
  const text = buffer.toString("utf8", 0, bytesRead);
  return text.slice(text.slice(0, -1).lastIndexOf("\n") + 1);
}

function noLog(id: TemplateId): MitosError {
  return new MitosError("not_found", { cause: `no template ${id} was built here`, remediation: "Create it with POST /v1/templates." });
}
