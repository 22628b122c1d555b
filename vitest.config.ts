import { defineConfig } from "vitest/config";
import { engineUnderTest, patience } from "./test/support/engine-under-test.ts";

/** Against real sandboxes: one file of a project at a time, so that figures and leak counts are those of one suite. */
const oneFileAtATime = { maxWorkers: 1, fileParallelism: false, testTimeout: 120_000 * patience } as const;

export default defineConfig({
  test: {
    testTimeout: 30_000,
    hookTimeout: 120_000 * patience,
    expect: { poll: { timeout: 20_000 } },
    projects: [
      {
        extends: true,
        test: { name: "units", include: ["packages/*/src/**/*.test.ts", "test/repository/**/*.test.ts"], maxWorkers: 2 },
      },
      {
        extends: true,
        test: {
          name: "engine",
          include: [`test/{bench,cli,conformance,docs,e2e,engine,firecracker,${engineUnderTest},images,mcp,sdk,server}/**/*.test.ts`],
          ...oneFileAtATime,
        },
      },
      {
        // What kills, fills and floods, the published clients, frameworks, other runtimes and the example templates: beside the project above in `npm test`.
        extends: true,
        test: { name: "faults", include: ["test/{clients,examples,faults,frameworks,runtimes}/**/*.test.ts"], ...oneFileAtATime },
      },
    ],
  },
});
