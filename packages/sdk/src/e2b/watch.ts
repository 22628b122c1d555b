import type { FileEvent } from "../files.ts";
import type { Sandbox } from "../sandbox.ts";
import { timerMs } from "../timer.ts";
import { type EntryInfo, FileType, findEntries } from "./entries.ts";
import { InvalidArgumentError, SandboxError, TimeoutError, toE2BError } from "./errors.ts";
import { home, homeOf, inWorkspace, workspace } from "./home.ts";
import { type RequestOpts, request } from "./request.ts";

/** What has happened to an entry; `chmod` is never told here. */
export const FilesystemEventType = { CHMOD: "chmod", CREATE: "create", REMOVE: "remove", RENAME: "rename", WRITE: "write" } as const;
export type FilesystemEventType = (typeof FilesystemEventType)[keyof typeof FilesystemEventType];

/** One change in a watched folder. */
export interface FilesystemEvent {
  /** Relative to the watched folder. */
  name: string;
  type: FilesystemEventType;
  /** With `includeEntry`, unless it is gone. */
  entry?: EntryInfo;
}

/** Options of `files.watchDir`. */
export interface WatchOpts extends RequestOpts {
  user?: string | undefined;
  /** Default: 60,000; 0 = none. */
  timeoutMs?: number | undefined;
  /** Called once, with the error when it was one that ended the watch. */
  onExit?: ((error?: Error) => void | Promise<void>) | undefined;
  recursive?: boolean | undefined;
  includeEntry?: boolean | undefined;
  /** Ignored: there are no network mounts. */
  allowNetworkMounts?: boolean | undefined;
}

/** A watch that goes on. */
export class WatchHandle {
  readonly #stop: () => void;

  constructor(stop: () => void) {
    this.#stop = stop;
  }

  /** No event is told any more. */
  async stop(): Promise<void> {
    this.#stop();
  }
}

const timeoutMsDefault = 60_000;
/** A file that is made and removed until its event arrives: nothing else tells that a watch has begun. Nobody is told of it. */
const probePrefix = ".mitos-watch-";
const probeEveryMs = 100;

export async function startWatch(
  sandbox: Sandbox,
  path: string,
  onEvent: (event: FilesystemEvent) => void | Promise<void>,
  opts: WatchOpts,
): Promise<WatchHandle> {
  const { timeoutMs = timeoutMsDefault, onExit } = opts;
  const folder = watchable(path);
  const stop = new AbortController();
  const { watching, begun } = follow(sandbox, folder, homeOf(path), onEvent, opts, stop.signal);
  try {
    await request("file", opts, (signal) => untilBegun(sandbox, folder, begun, signal));
  } catch (error) {
    stop.abort();
    throw error;
  }
  const late = () => stop.abort(new TimeoutError(`watching took longer than timeoutMs (${timeoutMs}); pass a larger one, or 0 for none`));
  const timer = timeoutMs > 0 ? setTimeout(late, timerMs(timeoutMs)) : undefined;
  void watching
    .finally(() => clearTimeout(timer))
    .then(
      () => onExit?.(),
      (error: unknown) => onExit?.(error as Error),
    )
    .catch(() => undefined); // what onExit throws has nobody to go to
  return new WatchHandle(() => stop.abort());
}

/** @throws InvalidArgumentError for what the server does not watch */
function watchable(path: string): string {
  const folder = inWorkspace(path).replace(/(?<=.)\/+$/, "");
  if (folder === workspace || folder.startsWith(`${workspace}/`)) return folder;
  throw new InvalidArgumentError(`${path} cannot be watched: only ${home}, which is ${workspace}, and what lies below it can`);
}

/**
 * Tells the events until the signal aborts.
 *
 * @returns `watching` ends with it, and fails when something else ended it; `begun` resolves when an event of a probe has come
 */
function follow(
  sandbox: Sandbox,
  folder: string,
  told: string,
  onEvent: (event: FilesystemEvent) => void | Promise<void>,
  { recursive = false, includeEntry = false }: WatchOpts,
  signal: AbortSignal,
): { watching: Promise<void>; begun: Promise<true> } {
  let begin: (() => void) | undefined;
  const probeSeen = new Promise<true>((resolve) => {
    begin = () => resolve(true);
  });
  const watching = (async () => {
    for await (const event of sandbox.files.watch(folder, { recursive, signal })) {
      for (const each of toEvents(event, folder)) {
        if (signal.aborted) return;
        if (nameOf(each.name).startsWith(probePrefix)) begin?.();
        else await onEvent(includeEntry ? await withEntry(sandbox, told, each, signal) : each);
      }
    }
    throw new SandboxError("the sandbox ended the watch");
  })().catch((error: unknown) => {
    if (!signal.aborted) throw toE2BError(error, "file");
    if (signal.reason instanceof TimeoutError) throw signal.reason;
  });
  watching.catch(() => undefined); // seen by who waits for the beginning, then by onExit
  return { watching, begun: Promise.race([probeSeen, watching.then(() => true as const)]) };
}

/** @throws FileNotFoundError, InvalidArgumentError for what is no folder */
async function untilBegun(sandbox: Sandbox, folder: string, begun: Promise<true>, signal: AbortSignal): Promise<void> {
  begun.catch(() => undefined); // may fail while the folder is looked at
  // First, since a probe would make a folder that is not there.
  const [entry] = await findEntries(sandbox, folder, { depth: 0, follow: true }, signal);
  if (entry?.type !== FileType.DIR) throw new InvalidArgumentError(`${folder} is not a directory`);
  for (let isOver = false; !isOver; ) {
    const probe = `${folder}/${probePrefix}${crypto.randomUUID()}`;
    await sandbox.files.write(probe, "");
    await sandbox.files.remove(probe);
    isOver = await Promise.race([begun, new Promise<false>((resolve) => setTimeout(resolve, probeEveryMs, false))]);
    signal.throwIfAborted();
  }
}

async function withEntry(sandbox: Sandbox, folder: string, event: FilesystemEvent, signal: AbortSignal): Promise<FilesystemEvent> {
  try {
    const [entry] = await findEntries(sandbox, `${folder}/${event.name}`, { depth: 0, follow: false }, signal);
    return entry ? { ...event, entry } : event;
  } catch {
    return event; // gone meanwhile
  }
}

function nameOf(path: string): string {
  return path.slice(path.lastIndexOf("/") + 1);
}

/** A rename is told as E2B does: the old name is renamed, the new one created. */
export function toEvents({ kind, path, newPath }: FileEvent, folder: string): FilesystemEvent[] {
  const relative = (full: string) => (full.startsWith(`${folder}/`) ? full.slice(folder.length + 1) : full);
  switch (kind) {
    case "create":
      return [{ name: relative(path), type: "create" }];
    case "modify":
      return [{ name: relative(path), type: "write" }];
    case "delete":
      return [{ name: relative(path), type: "remove" }];
    case "rename": {
      const renamed: FilesystemEvent = { name: relative(path), type: "rename" };
      return newPath === undefined ? [renamed] : [renamed, { name: relative(newPath), type: "create" }];
    }
  }
}
