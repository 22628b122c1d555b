import type { BenchServer } from "./bench-server.ts";

const largeFileBytes = 16 * 2 ** 20;

/** How many of each a server is asked for before anything is measured. */
export interface WarmUp {
  readonly execs: number;
  readonly cells: number;
  /** Small ones, each written and read. */
  readonly files: number;
  /** Each written and read over the raw route. */
  readonly largeFiles: number;
  /** Each with an exec. */
  readonly creates: number;
}

/**
 * Lets a new server, and this client, serve for a while. A server is a daemon that lives for weeks, and V8 compiles what has run often: the first dozens
 * of calls take some milliseconds longer than all that come after.
 */
export async function warmUp(server: BenchServer, calls: WarmUp, signal?: AbortSignal): Promise<void> {
  const times = async (count: number, work: () => Promise<unknown>) => {
    for (let done = 0; done < count && !signal?.aborted; done++) await work();
  };
  const sandbox = await server.create();
  await times(calls.execs, () => sandbox.exec("true"));
  await times(calls.cells, () => sandbox.runCode("1+1"));
  await times(calls.files, async () => {
    await sandbox.files.write("/workspace/warm-up", "small");
    await sandbox.files.read("/workspace/warm-up");
  });
  const large = new Uint8Array(largeFileBytes);
  await times(calls.largeFiles, async () => {
    await sandbox.files.write("/workspace/warm-up", large);
    for await (const _piece of await sandbox.files.readStream("/workspace/warm-up"));
  });
  await sandbox.terminate();
  await times(calls.creates, async () => {
    const created = await server.create();
    await created.exec("true");
    await created.terminate();
  });
}
