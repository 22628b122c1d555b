export interface SharedUse<T> extends Disposable {
  readonly value: T;
}

/**
 * Things with names, each made when it is first asked for, once however many ask, and in use until all of them have given it back. What nobody uses can
 * be removed meanwhile: whoever wants something during a removal waits for its end, since it may be the one that goes.
 */
export class Shared<T> {
  readonly #opening = new Map<string, Promise<T>>();
  readonly #uses = new Map<string, number>();
  #removing: Promise<void> = Promise.resolve();

  /** @param open - finds it or makes it; called again by the next one who asks */
  async use(name: string, open: () => Promise<T>): Promise<SharedUse<T>> {
    const held = await this.hold(name);
    try {
      return { value: await this.#openOnce(name, open), [Symbol.dispose]: () => held[Symbol.dispose]() };
    } catch (error) {
      held[Symbol.dispose]();
      throw error;
    }
  }

  /** As `use`, of something that its holder finds alone: it is not removed from now on, if it is still there. */
  async hold(name: string): Promise<Disposable> {
    this.#uses.set(name, (this.#uses.get(name) ?? 0) + 1);
    let givenBack = false;
    await this.#removing;
    return {
      [Symbol.dispose]: () => {
        if (givenBack) return;
        givenBack = true;
        const left = (this.#uses.get(name) ?? 1) - 1;
        if (left > 0) this.#uses.set(name, left);
        else this.#uses.delete(name);
      },
    };
  }

  /** Removals follow each other. @param removal - told which names are in use, being made among them; none of the others becomes so until it settles */
  async remove(removal: (inUse: ReadonlySet<string>) => Promise<void>): Promise<void> {
    const removed = this.#removing.then(() => removal(new Set(this.#uses.keys())));
    this.#removing = removed.catch(() => {});
    await removed;
  }

  #openOnce(name: string, open: () => Promise<T>): Promise<T> {
    const opening = this.#opening.get(name) ?? open().finally(() => this.#opening.delete(name));
    this.#opening.set(name, opening);
    return opening;
  }
}
