import { describe, expect, it } from "vitest";
import { EventLog } from "./event-log.ts";

const message = (text: string) => ({ jsonrpc: "2.0" as const, method: "notifications/message", params: { text } });

async function after(log: EventLog, id: string): Promise<string[]> {
  const seen: string[] = [];
  await log.replayEventsAfter(id, { send: async (_id, sent) => void seen.push(JSON.stringify(sent)) });
  return seen;
}

describe("the event log", () => {
  it("repeats what followed an event on its own stream, in order", async () => {
    const log = new EventLog();
    const first = await log.storeEvent("one", message("1"));
    await log.storeEvent("other", message("x"));
    const second = await log.storeEvent("one", message("2"));
    await log.storeEvent("one", message("3"));
    expect(await after(log, first)).toEqual([message("2"), message("3")].map((sent) => JSON.stringify(sent)));
    expect(await after(log, second)).toHaveLength(1);
    expect(await log.getStreamIdForEventId(second)).toBe("one");
  });

  it("forgets the oldest when it is full, and says that it does not know them", async () => {
    const log = new EventLog();
    const first = await log.storeEvent("one", message("1"));
    const large = await log.storeEvent("one", message("x".repeat(5 * 1024 * 1024)));
    expect(await log.getStreamIdForEventId(first)).toBeUndefined();
    await expect(after(log, first)).rejects.toThrow("not known");
    // The latest stays, whatever its size.
    expect(await log.getStreamIdForEventId(large)).toBe("one");
  });
});
