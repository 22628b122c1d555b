import { expect, it } from "vitest";
import { describeImages, measureImages } from "../bench/images.ts";
import { quiet } from "../support/live-server.ts";

it("the figures of images and builds can be taken, each with its baseline", async () => {
  const taken = await measureImages({ rounds: 1, log: quiet });
  const steps = taken.figures.map(({ step }) => step);
  expect(steps).toHaveLength(7);
  for (const { ms, baseline } of taken.figures) {
    expect(ms).toEqual([expect.toSatisfy((value) => value > 0)]);
    expect(steps).toContain(baseline);
  }
  // The image, the second one and three builds; what they share is in each one's files and in none's own.
  expect(taken.disk).toHaveLength(5);
  for (const { rootBytes, ownBytes, snapshotBytes } of taken.disk) {
    expect(rootBytes).toBeGreaterThan(50 << 20);
    expect(ownBytes).toBeLessThan(1 << 20);
    expect(snapshotBytes).toBeGreaterThan(0);
  }
  const text = describeImages(taken);
  expect(text).not.toContain("NaN");
  for (const step of steps) expect(text).toContain(`| ${step} |`);
});
