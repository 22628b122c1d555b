/** The same items, and undefined whenever none has come for so long. Leaving early leaves the source. */
export async function* orSilence<T extends object>(
  items: AsyncIterable<T>,
  silenceMs: () => number,
): AsyncGenerator<T | undefined, void, undefined> {
  const iterator = items[Symbol.asyncIterator]();
  let finished = false;
  try {
    for (;;) {
      const next = iterator.next();
      let item = await within(next, silenceMs());
      while (!item) {
        yield undefined;
        item = await within(next, silenceMs());
      }
      if (item.done) {
        finished = true;
        return;
      }
      yield item.value;
    }
  } finally {
    // Not awaited: a source that is waiting for its next item may answer only after that.
    if (!finished) void iterator.return?.().then(undefined, () => {});
  }
}

async function within<T>(next: Promise<T>, ms: number): Promise<T | undefined> {
  let timer: NodeJS.Timeout | undefined;
  const silence = new Promise<undefined>((resolve) => {
    timer = setTimeout(resolve, ms, undefined);
  });
  next.catch(() => {}); // may fail after the race is over
  try {
    return await Promise.race([next, silence]);
  } finally {
    clearTimeout(timer);
  }
}
