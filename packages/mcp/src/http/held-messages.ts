/** What messages over HTTP take together, from their first byte to the end of their answers: four of the largest. */
const bytesMax = 64 * 1024 * 1024;
/** What a piece takes beside its bytes: many small ones must not be held for nothing. */
const pieceOverheadBytes = 1024;

export interface HeldMessage extends Disposable {
  /** @returns whether there is room for a piece of it, which is counted then */
  add(bytes: number): boolean;
}

/** The messages in this program's memory: what was parsed of one lives as long as its call. */
export class HeldMessages {
  #total = 0;

  /** Until it is disposed of. */
  hold(): HeldMessage {
    let held = 0;
    return {
      add: (bytes) => {
        const cost = bytes + pieceOverheadBytes;
        if (this.#total + cost > bytesMax) return false;
        this.#total += cost;
        held += cost;
        return true;
      },
      [Symbol.dispose]: () => {
        this.#total -= held;
        held = 0;
      },
    };
  }
}
