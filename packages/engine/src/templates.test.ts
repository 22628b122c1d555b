import { toTemplateId } from "@mitos/protocol";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { Bench, sandbox, template } from "./testing.ts";

let bench: Bench;
beforeEach(async () => {
  bench = await Bench.open();
});
afterEach(async () => {
  await bench[Symbol.asyncDispose]();
  expect(bench.driver.machines.size).toBe(0);
});

const python = toTemplateId("python");

/** The next look at a snapshot waits for `go`; `looking` tells that it has begun. What it finds is `fits`. */
function holdCheck(fits: boolean): { looking: Promise<void>; go: () => void } {
  const looking = Promise.withResolvers<void>();
  const go = Promise.withResolvers<void>();
  bench.driver.onCheck = async () => {
    bench.driver.onCheck = () => {};
    looking.resolve();
    await go.promise;
    if (!fits) throw new Error("/usr/bin/python3 was replaced");
  };
  return { looking: looking.promise, go: go.resolve };
}

describe("a create that looks whether its template still fits this host", () => {
  it.each([true, false])("leaves the definition that took its place meanwhile (it fitted: %s)", async (fits) => {
    const { looking, go } = holdCheck(fits);
    const created = bench.engine.create(sandbox("a"));
    await looking;
    const changed = template("python", { resources: { vcpuCount: 1, memSizeMiB: 1024, processesMax: 1024 } });
    await bench.engine.createTemplate(changed);
    const boots = bench.driver.boots;
    go();
    await expect(created).resolves.toMatchObject({ resources: { memSizeMiB: 1024 } });
    expect(bench.engine.listTemplates()).toMatchObject([{ resources: { memSizeMiB: 1024 } }]);
    expect(bench.driver.boots).toBe(boots);
  });

  it.each([true, false])("does not bring back one that was deleted meanwhile (it fitted: %s)", async (fits) => {
    const { looking, go } = holdCheck(fits);
    const created = expect(bench.engine.create(sandbox("a"))).rejects.toMatchObject({ code: "not_found" });
    await looking;
    await bench.engine.deleteTemplate(python);
    go();
    await created;
    expect(bench.engine.listTemplates()).toEqual([]);
    expect(await bench.snapshotFolders()).toEqual([]);
  });

  it("builds one that does not fit anew once, for all who wait", async () => {
    const boots = bench.driver.boots;
    bench.driver.onCheck = () => {
      if (bench.driver.boots === boots) throw new Error("/usr/bin/python3 was replaced");
    };
    await Promise.all([
      bench.engine.create(sandbox("a")),
      bench.engine.create(sandbox("b")),
      bench.engine.createTemplate(template("python")),
    ]);
    expect(bench.driver.boots).toBe(boots + 1);
  });
});
