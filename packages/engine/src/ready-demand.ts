/** What the driver keeps ready after each start for the next ones of its kind, however few were started. */
const readyMin = 2;
/** However many were: each takes memory while it waits, a virtual machine's monitor some 15 MiB. */
const readyMax = 8;

/** How many machines of a template stand ready: as many as were last started at once. That is forgotten one by one with each start of fewer. */
export class ReadyDemand {
  readonly #counts = new Map<string, number>();

  /** @param started - how many were started together */
  after(templateId: string, started: number): number {
    const before = this.#counts.get(templateId) ?? readyMin;
    const count = Math.min(readyMax, Math.max(readyMin, started, before - 1));
    if (count === readyMin) this.#counts.delete(templateId);
    else this.#counts.set(templateId, count);
    return count;
  }
}
