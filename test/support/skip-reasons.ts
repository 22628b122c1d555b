import type { Reporter, TestCase } from "vitest/node";

/** Prints why tests were skipped, which the default reporter does not; `npm test` passes these lines on. */
export default class SkipReasons implements Reporter {
  onTestCaseResult(test: TestCase): void {
    const result = test.result();
    if (result.state === "skipped" && result.note) process.stdout.write(`skipped: ${test.fullName}: ${result.note}\n`);
  }
}
