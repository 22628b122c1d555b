import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    testTimeout: 30_000,
    hookTimeout: 120_000,
    projects: [
      {
        extends: true,
        test: { name: "units", include: ["packages/*/src/**/*.test.ts", "test/repository/**/*.test.ts"], maxWorkers: 2 },
      },
      {
        // Against real sandboxes: one file at a time, so that figures and leak counts are those of one suite.
        extends: true,
        test: {
          name: "engine",
          include: ["test/{cli,clients,conformance,e2e,engine,faults,gvisor,sdk,server}/**/*.test.ts"],
          maxWorkers: 1,
          fileParallelism: false,
          testTimeout: 120_000,
        },
      },
    ],
  },
});
