import type { NodeUsage, SandboxUsage } from "@mitos/engine";
import { toSandboxId, toTemplateId } from "@mitos/protocol";
import { expect, it } from "vitest";
import { account } from "./metering.ts";

const zero = { memoryBytes: 0, sharedBytes: 0, egressBytes: 0, diskBytes: 0, isStale: false };
const usage = (id: string, template: string, figures: Partial<SandboxUsage> = {}): SandboxUsage => ({
  ...zero,
  id: toSandboxId(id),
  templateId: toTemplateId(template),
  ...figures,
});
const snapshot = (id: string, snapshotBytes: number) => ({ id: toTemplateId(id), snapshotBytes });

const cases: [string, NodeUsage, object][] = [
  [
    "nothing for nothing",
    { sandboxes: [], templates: [] },
    { Sandboxes: [], Templates: [], UsedCoWAware: 0, UsedNaive: 0, CoWSavings: 0, DiskUsedCoWAware: 0, DiskUsedNaive: 0, Stale: [] },
  ],
  [
    "what siblings share once, by the one that shares most",
    {
      sandboxes: [usage("b", "t", { memoryBytes: 10, sharedBytes: 5 }), usage("a", "t", { memoryBytes: 20, sharedBytes: 7 })],
      templates: [],
    },
    {
      TotalUnique: 30,
      UsedCoWAware: 37,
      UsedNaive: 42,
      CoWSavings: 5,
      Templates: [{ Template: "t", ForkCount: 2, SharedOnce: 7, DiskSharedOnce: 0 }],
    },
  ],
  [
    "templates apart from each other",
    { sandboxes: [usage("a", "t", { sharedBytes: 5 }), usage("b", "u", { sharedBytes: 7 })], templates: [] },
    { UsedCoWAware: 12, UsedNaive: 12, CoWSavings: 0 },
  ],
  [
    "a template's snapshot once, a pause's as its sandbox's own",
    {
      sandboxes: [usage("a", "t", { diskBytes: 3 }), usage("b", "t"), usage("c", "t")],
      templates: [snapshot("t", 100)],
    },
    { DiskTotalUnique: 3, DiskUsedCoWAware: 103, DiskUsedNaive: 303, DiskCoWSavings: 200 },
  ],
  [
    "the snapshot of a template that nobody uses, without a saving",
    { sandboxes: [], templates: [snapshot("z", 10), snapshot("a", 1)] },
    {
      DiskUsedCoWAware: 11,
      DiskUsedNaive: 11,
      DiskCoWSavings: 0,
      Templates: [
        { Template: "a", ForkCount: 0, SharedOnce: 0, DiskSharedOnce: 1 },
        { Template: "z", ForkCount: 0, SharedOnce: 0, DiskSharedOnce: 10 },
      ],
    },
  ],
  [
    "every key of a sandbox, sorted by id, and names whose figures are old",
    {
      sandboxes: [usage("b", "t", { isStale: true }), usage("a", "gone", { memoryBytes: 1, sharedBytes: 2, egressBytes: 3, diskBytes: 4 })],
      templates: [],
    },
    {
      Sandboxes: [
        {
          ID: "a",
          Template: "gone",
          MemoryUnique: 1,
          MemoryShared: 2,
          DiskUnique: 4,
          DiskShared: 0,
          EgressBytes: 3,
          GPUCount: 0,
          GPUSeconds: 0,
        },
        {
          ID: "b",
          Template: "t",
          MemoryUnique: 0,
          MemoryShared: 0,
          DiskUnique: 0,
          DiskShared: 0,
          EgressBytes: 0,
          GPUCount: 0,
          GPUSeconds: 0,
        },
      ],
      TotalGPUSeconds: 0,
      Stale: ["b"],
    },
  ],
];

it.each(cases)("the account counts %s", (_title, input, expected) => {
  expect(account(input)).toMatchObject(expected);
});
