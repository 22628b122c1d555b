import type { ByHand } from "./by-hand.ts";
import type { Line, Sample } from "./row.ts";

/** runsc by hand, and whose samples its figures are. */
export interface Hand {
  readonly hand: ByHand;
  readonly sample: (line: Line, value: number) => Sample;
}

export interface HandWithContainer extends Hand {
  readonly container: string;
}

/** Starts a container of each. @param start - returns its id */
export function startEach(hands: readonly Hand[], start: (hand: ByHand) => Promise<string>): Promise<readonly HandWithContainer[]> {
  return Promise.all(hands.map(async ({ hand, sample }) => ({ hand, sample, container: await start(hand) })));
}

export async function removeEach(containers: readonly HandWithContainer[]): Promise<void> {
  await Promise.all(containers.map(({ hand, container }) => hand.remove(container)));
}
