import type { BenchServer } from "./bench-server.ts";

/** How many of each a server is asked for before anything is measured. */
export interface WarmUp {
  readonly execs: number;
  readonly cells: number;
  /** Small ones, each written and read. */
  readonly files: number;
  /** Each with an exec. */
  readonly creates: number;
}

/**
 * Lets a new server, and this client, serve for a while. A server is a daemon that lives for weeks, and V8 compiles what has run often: the first dozens
 * of calls take some milliseconds longer than all that come after.
 */
export async function warmUp(server: BenchServer, { execs, cells, files, creates }: WarmUp, signal?: AbortSignal): Promise<void> {
  const times = async (count: number, work: () => Promise<unknown>) => {
    for (let done = 0; done < count && !signal?.aborted; done++) await work();
  };
  const sandbox = await server.create();
  await times(execs, () => sandbox.exec("true"));
  await times(cells, () => sandbox.runCode("1+1"));
  await times(files, async () => {
    await sandbox.files.write("/workspace/warm-up", "small");
    await sandbox.files.read("/workspace/warm-up");
  });
  await sandbox.terminate();
  await times(creates, async () => {
    const created = await server.create();
    await created.exec("true");
    await created.terminate();
  });
}
