import { afterEach, beforeEach, expect, it, vi } from "vitest";
import type { Log } from "../../actions.ts";
import type { MachineResources } from "../../driver.ts";
import { quiet } from "../../testing.ts";
import { type Keeper, ShimMachine } from "./machine.ts";

const resources: MachineResources = { vcpuCount: 1, memSizeMiB: 64, processesMax: 16 };

beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(() => {
  vi.useRealTimers();
});

/** Its shim answers nothing, and `kill` is all there is. */
function machineOf(
  kill: () => Promise<void>,
  log: Log,
  forget = async (): Promise<void> => {},
): { machine: ShimMachine; gone: () => void } {
  const closed = Promise.withResolvers<undefined>();
  const control = { closed: closed.promise, onEvent: () => {}, request: () => closed.promise.then(() => ({})), close: () => {} };
  const link = { transport: {}, close: () => {} };
  const keeper = { id: "0123456789ab", dir: "/nowhere", shimPid: 2 ** 22 + 1, control, link } as unknown as Keeper;
  const atEnd = { kill, forget, exit: async () => ({ reason: "killed", detail: "", atUnixMs: 0 }) as const };
  return { machine: new ShimMachine("m1", keeper, resources, atEnd, log), gone: () => closed.resolve(undefined) };
}

it("tells the log of a machine that the host does not let go of, rejects nobody's call to end it, and tries again when asked again", async () => {
  const said: string[] = [];
  let refusals = 1;
  const { machine, gone } = machineOf(
    async () => {
      if (refusals-- > 0) throw new Error("process 7 does not end");
      gone();
    },
    { ...quiet, error: (fields, message) => said.push(`${message}: ${JSON.stringify(fields)}`) },
  );
  const ended = Promise.all([machine.end("terminated"), machine.end("again")]);
  await vi.advanceTimersByTimeAsync(20_000);
  await ended;
  expect(said).toEqual([
    expect.stringContaining("killing it from outside"),
    expect.stringMatching(/could not be ended.*process 7 does not end/),
  ]);
  const endedNow = machine.end("once more");
  await vi.advanceTimersByTimeAsync(20_000);
  await endedNow;
  expect(await machine.exited).toMatchObject({ reason: "killed" });
});

it("tells how a machine ended of which something cannot be removed", async () => {
  const said: string[] = [];
  const { machine, gone } = machineOf(
    async () => {},
    { ...quiet, error: (_, message) => said.push(message) },
    () => Promise.reject(new Error("EBUSY")),
  );
  gone();
  expect(await machine.exited).toMatchObject({ reason: "killed" });
  expect(said).toEqual(["something of an ended machine could not be removed"]);
});
