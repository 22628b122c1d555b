/** Why a stream ends before its source does. */
export interface EndSignals {
  /** The client went away or ran into its deadline: the source is left, which kills a foreground exec. */
  readonly client: AbortSignal;
  /** The server is going down: the client is told, but what runs in the sandbox runs on. */
  readonly shutdown: AbortSignal;
}

/**
 * The client's signal for one request: as `source`, but deaf once the server goes down, because the connections that it then cuts are
 * not clients that went away.
 */
export function clientSignal(source: AbortSignal, shutdown: AbortSignal): AbortSignal {
  const controller = new AbortController();
  const pass = () => {
    if (!shutdown.aborted) controller.abort(source.reason);
  };
  if (source.aborted) pass();
  else source.addEventListener("abort", pass, { once: true });
  return controller.signal;
}

/** The same items; ends at once by throwing the reason of whichever signal comes first, even while the source is silent. */
export async function* follow<T>(source: AsyncIterable<T>, signals: EndSignals): AsyncGenerator<T, void, undefined> {
  const iterator = source[Symbol.asyncIterator]();
  // Of the item that is waited for. Not one promise that every wait races against: it would keep a reaction for each item that passed.
  let end: ((reason: unknown) => void) | undefined;
  const onClient = () => end?.(signals.client.reason);
  const onShutdown = () => end?.(signals.shutdown.reason);
  signals.client.addEventListener("abort", onClient, { once: true });
  signals.shutdown.addEventListener("abort", onShutdown, { once: true });
  let finished = false;
  try {
    while (true) {
      signals.client.throwIfAborted();
      signals.shutdown.throwIfAborted();
      const item = await new Promise<IteratorResult<T>>((resolve, reject) => {
        end = reject;
        iterator.next().then(resolve, reject);
      }).catch((error: unknown) => {
        finished = !isEnd(signals);
        throw error;
      });
      if (item.done) {
        finished = true;
        return;
      }
      yield item.value;
    }
  } finally {
    signals.client.removeEventListener("abort", onClient);
    signals.shutdown.removeEventListener("abort", onShutdown);
    // Leaving the source kills a foreground exec: right for a client that left, wrong for a server that goes down. Not awaited: a
    // source that is waiting for its next item may answer only after that.
    if (!finished && !signals.shutdown.aborted) void iterator.return?.().then(undefined, () => {});
  }
}

function isEnd(signals: EndSignals): boolean {
  return signals.client.aborted || signals.shutdown.aborted;
}
