import type { LiveServer } from "../support/live-server.ts";

/** Which of these sandboxes run. */
export async function runningOf(live: LiveServer, ids: readonly string[]): Promise<string[]> {
  const running = new Set((await live.engine.list()).filter(({ state }) => state === "running").map(({ id }) => id as string));
  return ids.filter((id) => running.has(id));
}
