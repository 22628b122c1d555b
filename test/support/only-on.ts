import { beforeEach } from "vitest";
import { engineUnderTest } from "./engine-under-test.ts";

/** Leaves out what follows in this suite (or file), and says why, on every engine but this one. */
export function onlyOn(engine: typeof engineUnderTest, reason: string): void {
  beforeEach(({ skip }) => skip(engineUnderTest !== engine, `not run on ${engineUnderTest}: ${reason}`));
}
