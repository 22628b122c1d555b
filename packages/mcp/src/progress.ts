import type { ServerContext } from "@modelcontextprotocol/server";

const betweenMs = 500;
/** Clients that give up on a silent call count again from each notification. */
const heartbeatMs = 5_000;
const messageCharsMax = 200;

/** Tells a client that asked for it how a long call is doing. */
export interface Progress extends Disposable {
  /** The call is one that takes time: from now on there is a sign of life. @param totalSeconds - the most that it may take */
  start(totalSeconds: number): void;
  /** The program has printed this. */
  printed(text: string): void;
}

/** `progress` is the time in seconds, `total` the call's time-out, `message` the last line that the program has printed. */
export function progressOf({ mcpReq }: Pick<ServerContext, "mcpReq">): Progress {
  const progressToken = mcpReq._meta?.progressToken;
  if (progressToken === undefined) return { start: () => {}, printed: () => {}, [Symbol.dispose]: () => {} };
  const startedAt = performance.now();
  let total: number | undefined;
  let lastAt = Number.NEGATIVE_INFINITY;
  let line = "";
  let heartbeat: NodeJS.Timeout | undefined;

  const notify = () => {
    lastAt = performance.now();
    const params = {
      progressToken,
      progress: (lastAt - startedAt) / 1000,
      ...(total ? { total } : {}),
      ...(line ? { message: line } : {}),
    };
    // A client that cannot be reached any more is noticed by whoever answers it.
    mcpReq.notify({ method: "notifications/progress", params }).catch(() => {});
  };

  return {
    start(totalSeconds) {
      total = totalSeconds;
      heartbeat = setInterval(notify, heartbeatMs);
    },
    printed(text) {
      line = text.trimEnd().split("\n").at(-1)?.slice(0, messageCharsMax) || line;
      if (performance.now() - lastAt >= betweenMs) notify();
    },
    [Symbol.dispose]: () => clearInterval(heartbeat),
  };
}
