import type { FileEvent } from "../files.ts";
import type { Sandbox } from "../sandbox.ts";
import { type EntryInfo, findEntries } from "./entries.ts";
import { InvalidArgumentError, TimeoutError, toE2BError } from "./errors.ts";
import { home, homeOf, inWorkspace, workspace } from "./home.ts";
import { type RequestOpts, request } from "./request.ts";

export const FilesystemEventType = { CHMOD: "chmod", CREATE: "create", REMOVE: "remove", RENAME: "rename", WRITE: "write" } as const;
/** `chmod` is never told here. */
export type FilesystemEventType = (typeof FilesystemEventType)[keyof typeof FilesystemEventType];

export interface FilesystemEvent {
  /** Relative to the watched folder. */
  name: string;
  type: FilesystemEventType;
  /** With `includeEntry`, unless it is gone. */
  entry?: EntryInfo;
}

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
  const { timeoutMs = timeoutMsDefault, recursive = false, includeEntry = false, onExit } = opts;
  const folder = inWorkspace(path).replace(/(?<=.)\/+$/, "");
  if (folder !== workspace && !folder.startsWith(`${workspace}/`)) {
    throw new InvalidArgumentError(`${path} cannot be watched: only ${home}, which is ${workspace}, and what lies below it can`);
  }
  const stop = new AbortController();
  const begun = Promise.withResolvers<true>();
  begun.promise.catch(() => undefined); // seen below

  const watching = follow().catch((error: unknown) => {
    if (stop.signal.aborted) {
      if (stop.signal.reason instanceof TimeoutError) throw stop.signal.reason;
      return;
    }
    throw toE2BError(error, "file");
  });
  watching.catch(begun.reject);

  await request("file", opts, async (signal) => {
    // First: a folder that is not there is an error of its own, not one of the probe, which would make it.
    await findEntries(sandbox, folder, { depth: 0, follow: true }, signal);
    for (let isOver = false; !isOver; ) {
      await touch(sandbox, `${folder}/${probePrefix}${crypto.randomUUID()}`);
      isOver = await Promise.race([begun.promise, new Promise<false>((resolve) => setTimeout(resolve, probeEveryMs, false))]);
      signal.throwIfAborted();
    }
  }).catch((error: unknown) => {
    stop.abort();
    throw error;
  });

  const timer =
    timeoutMs > 0
      ? setTimeout(() => stop.abort(new TimeoutError(`watching took longer than timeoutMs (${timeoutMs})`)), timeoutMs)
      : undefined;
  const exit = watching.then(
    () => onExit?.(),
    (error: unknown) => onExit?.(error as Error),
  );
  // What onExit throws has nobody to go to.
  exit
    .catch(() => undefined)
    .finally(() => clearTimeout(timer))
    .catch(() => undefined);
  return new WatchHandle(() => stop.abort());

  async function follow(): Promise<void> {
    for await (const event of sandbox.files.watch(folder, { recursive, signal: stop.signal })) {
      for (const told of toEvents(event, folder)) {
        if (stop.signal.aborted) return;
        if (told.name.slice(told.name.lastIndexOf("/") + 1).startsWith(probePrefix)) begun.resolve(true);
        else await onEvent(includeEntry ? { ...told, ...(await entryOf(told)) } : told);
      }
    }
  }

  async function entryOf({ name }: FilesystemEvent): Promise<{ entry?: EntryInfo }> {
    try {
      const [entry] = await findEntries(sandbox, `${homeOf(path)}/${name}`, { depth: 0, follow: false }, stop.signal);
      return entry ? { entry } : {};
    } catch {
      return {};
    }
  }
}

async function touch(sandbox: Sandbox, path: string): Promise<void> {
  await sandbox.files.write(path, "");
  await sandbox.files.remove(path);
}

/** A rename is told as E2B does: the old name is renamed, the new one created. */
export function toEvents({ kind, path, newPath }: FileEvent, folder: string): FilesystemEvent[] {
  const nameOf = (full: string) => (full.startsWith(`${folder}/`) ? full.slice(folder.length + 1) : full);
  switch (kind) {
    case "create":
      return [{ name: nameOf(path), type: "create" }];
    case "modify":
      return [{ name: nameOf(path), type: "write" }];
    case "delete":
      return [{ name: nameOf(path), type: "remove" }];
    case "rename": {
      const renamed: FilesystemEvent = { name: nameOf(path), type: "rename" };
      return newPath === undefined ? [renamed] : [renamed, { name: nameOf(newPath), type: "create" }];
    }
  }
}
