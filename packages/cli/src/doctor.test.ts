import type { EngineSurvey } from "@mitos/engine";
import { describe, expect, it } from "vitest";
import { engineChecks } from "./commands/doctor.ts";

function survey(
  isolation: EngineSurvey["result"]["isolation"],
  change: Partial<EngineSurvey["result"]> & { isTaken?: boolean },
): EngineSurvey {
  const { isTaken = false, ...result } = change;
  return {
    result: { usable: false, isolation, detail: `about ${isolation}`, remedies: [], weaknesses: [], ...result },
    tried: true,
    isTaken,
    flags: `--engine ${isolation}`,
  };
}

describe("what the doctor says of the ways to run sandboxes", () => {
  it("passes what auto takes and what could be taken, warns of weaknesses, and notes what is missing and not needed", () => {
    const checks = engineChecks([
      survey("microvm-kvm", { remedies: ["Get a processor."] }),
      survey("gvisor", { usable: true, isTaken: true, weaknesses: ["no cgroups"] }),
      survey("microvm-tcg", { usable: true }),
    ]);
    expect(checks).toEqual([
      { verdict: "PASS", name: "engine", detail: "gvisor: about gvisor" },
      { verdict: "WARN", name: "weaker", detail: "no cgroups", remediation: expect.stringContaining("Nothing has to be done") },
      { verdict: "NOTE", name: "engine-microvm-kvm", detail: "about microvm-kvm", remediation: "Get a processor." },
      { verdict: "PASS", name: "engine-microvm-tcg", detail: "about microvm-tcg; taken with --engine microvm-tcg" },
    ]);
  });

  it("fails every way that does not work when none is taken", () => {
    const checks = engineChecks([survey("microvm-kvm", { remedies: ["a"] }), survey("gvisor", { remedies: ["b", "c"] })]);
    expect(checks.map(({ verdict, name, remediation }) => [verdict, name, remediation])).toEqual([
      ["FAIL", "engine-microvm-kvm", "a"],
      ["FAIL", "engine-gvisor", "b c"],
    ]);
  });
});
