import type { BuildEvent } from "@mitos/sdk";
import { describe, expect, it } from "vitest";
import { Creating } from "./creating.ts";
import { LineReport } from "./lines.ts";
import type { ProgressEvent } from "./report.ts";
import { bar, cut, duration, oneLine, widthOf } from "./text.ts";
import { BuildView } from "./view.ts";

type Without<Event> = Event extends unknown ? Omit<Event, "atMs"> : never;
const at = (event: Without<ProgressEvent>) => ({ atMs: 0, ...event }) as ProgressEvent;
const step = (index: number, state: "running" | "cached" | "done" | "failed", label = "make", ms = 0) =>
  at({ kind: "step", index, count: 3, type: "run", label, state, ms });
const log = (text: string, of: number | null = 0) => at({ kind: "log", step: of, stream: "stdout", text });
const layer = (digest: string, state: "waiting" | "downloading" | "unpacking" | "done" | "shared", doneBytes = 0) =>
  at({ kind: "layer", digest: `sha256:${digest.repeat(64)}`, state, doneBytes, totalBytes: 4 * 1024 * 1024 });

describe("where there is no terminal", () => {
  const printed = (...events: ProgressEvent[]) => {
    const lines: string[] = [];
    using report = new LineReport((line) => lines.push(line));
    for (const event of events) report.show(event);
    return lines;
  };

  it("a line is printed for each thing that happens", () => {
    expect(
      printed(
        at({ kind: "context", step: 1, source: ".", state: "sending", doneBytes: 0, totalBytes: 2048 }),
        at({ kind: "context", step: 1, source: ".", state: "sending", doneBytes: 1024, totalBytes: 2048 }),
        at({ kind: "context", step: 1, source: ".", state: "sent", doneBytes: 2048, totalBytes: 2048 }),
        at({ kind: "phase", phase: "pull", detail: "docker.io/library/python:3.12" }),
        layer("a", "downloading", 100),
        layer("a", "done"),
        layer("b", "shared"),
        at({ kind: "phase", phase: "step", detail: "" }),
        step(0, "cached", "apt-get update"),
        step(1, "running", "make \\\n  && make install"),
        log("one\ntw", 1),
        log("o\n", 1),
        step(1, "done", "make", 3210),
        at({ kind: "warning", text: "careful" }),
        log("the program's own", null),
        at({ kind: "done", creationTimeMs: 1 }),
      ),
    ).toEqual([
      "[SEND  ] . 2.0 KiB",
      "[PULL  ] docker.io/library/python:3.12",
      "[LAYER ] aaaaaaaaaaaa 4.0 MiB",
      "[CACHED] layer bbbbbbbbbbbb",
      "[CACHED] step 0 run apt-get update",
      "[BUILD ] step 1 run make \\ && make install",
      "     1 | one",
      "     1 | two",
      "[DONE  ] step 1 in 3.2 s",
      "[WARN  ] careful",
      "       | the program's own",
    ]);
  });

  it("what a step printed last is told before its failure, also without an end of line", () => {
    expect(printed(step(0, "running"), log("no such file"), step(0, "failed", "make", 1000))).toEqual([
      "[BUILD ] step 0 run make",
      "     0 | no such file",
      "[FAILED] step 0 run make after 1.0 s",
    ]);
  });
});

describe("on a terminal", () => {
  const view = (...events: ProgressEvent[]) => {
    const made = new BuildView();
    for (const event of events) made.apply(event, 1000);
    return made;
  };
  const texts = (lines: readonly { text: string }[]) => lines.map(({ text }) => text);
  const frame = (of: BuildView, width = 80, height = 20) => texts(of.frame(width, height, 5000, 0));

  it("layers have bars while they are downloaded, and those that wait are counted", () => {
    const pulling = view(
      at({ kind: "phase", phase: "pull", detail: "python:3.12" }),
      layer("a", "downloading", 1024 * 1024),
      layer("b", "unpacking"),
      layer("c", "waiting"),
      layer("d", "shared"),
      layer("e", "done"),
    );
    expect(frame(pulling)).toEqual([
      "⠋ pulling python:3.12 4.0 s",
      "    aaaaaaaaaaaa █████░░░░░░░░░░░░░░░ 1.0 MiB of 4.0 MiB",
      "    bbbbbbbbbbbb unpacking",
      "    and 1 more layer",
    ]);
    expect(frame(pulling, 40)[1]).toBe("    aaaaaaaaaaaa 1.0 MiB of 4.0 MiB");
    pulling.apply(at({ kind: "phase", phase: "boot", detail: "" }), 6000);
    expect(texts(pulling.takeFinished())).toEqual(["✓ pulling python:3.12, 5 layers (1 there already), 4.0 MiB, 5.0 s"]);
    expect(pulling.takeFinished()).toEqual([]);
  });

  it("the last lines of the step that runs are seen, and go when it is done", () => {
    const building = view(
      step(0, "cached"),
      step(1, "running", "pip install"),
      log("1\n2\n3\n4\n5\n6\n7\n\n", 1),
      log("8 of 9\r9 of 9\n", 1),
    );
    expect(texts(building.takeFinished())).toEqual(["✓ step 0 run make, cached"]);
    expect(frame(building)).toEqual([
      "⠋ step 1 run pip install 4.0 s",
      ...["3", "4", "5", "6", "7", "9 of 9"].map((line) => `    ${line}`),
    ]);
    building.apply(step(1, "done", "pip install", 62_000), 6000);
    expect(texts(building.takeFinished())).toEqual(["✓ step 1 run pip install, 1 min 2 s"]);
    expect(frame(building)).toEqual([]);
  });

  it("the last lines of a step that failed stay", () => {
    const failed = view(
      step(0, "running"),
      log("no rule\n"),
      log("stop"),
      step(0, "failed", "make", 1500),
      at({ kind: "failed", code: "build_failed", message: "", cause: "", remediation: "" }),
    );
    expect(texts(failed.takeFinished())).toEqual(["✗ step 0 run make, 1.5 s", "    no rule", "    stop"]);
    expect(frame(failed)).toEqual([]);
  });

  it("nothing is wider or higher than it", () => {
    const building = view(step(0, "running", "x".repeat(200)), log(`${"y".repeat(200)}\n${"漢".repeat(100)}\nz\n`));
    const lines = frame(building, 30, 3);
    expect(lines).toHaveLength(3);
    expect(lines.map(widthOf)).toEqual([30, 30, 29]);
    expect(lines[0]).toMatch(/^⠋ step 0 run x+… 4\.0 s$/);
  });

  it("files that are sent have a bar", () => {
    const sending = view(at({ kind: "context", step: 0, source: "src", state: "sending", doneBytes: 512, totalBytes: 1024 }));
    expect(frame(sending)).toEqual(["⠋ sending src ██████████░░░░░░░░░░ 512 B of 1.0 KiB"]);
    sending.apply(at({ kind: "context", step: 0, source: "src", state: "sent", doneBytes: 1024, totalBytes: 1024 }), 0);
    expect(texts(sending.takeFinished())).toEqual(["✓ sent src, 1.0 KiB"]);
    expect(frame(sending)).toEqual([]);
  });
});

describe("what a new sandbox waits for", () => {
  it("is its template, with how much of its layers is there, and then itself", () => {
    const creating = new Creating();
    const texts = [
      at({ kind: "phase", phase: "pull", detail: "python:3.12" }),
      layer("a", "downloading", 1024 * 1024),
      layer("b", "done"),
      layer("c", "shared"),
      at({ kind: "phase", phase: "boot", detail: "" }),
      at({ kind: "done", creationTimeMs: 1 }),
    ].map((event) => {
      creating.note(event as BuildEvent);
      return creating.text;
    });
    expect(texts).toEqual([
      "pulling python:3.12",
      "pulling python:3.12, 1.0 MiB of 4.0 MiB",
      "pulling python:3.12, 5.0 MiB of 8.0 MiB",
      "pulling python:3.12, 5.0 MiB of 8.0 MiB",
      "booting",
      "creating the sandbox",
    ]);
  });
});

describe("text for a line", () => {
  it("moves no cursor, has no colours, and is what a line that was drawn over ended as", () => {
    expect(oneLine("\x1b[31mred\x1b[0m\x07\tx\x1b]0;title\x07")).toBe("red  x");
    expect(oneLine("10%\r50%\r100%\r")).toBe("100%");
    expect(oneLine("\x1b[2J\x1b[H\x9b2Jgone")).not.toMatch(/\p{Cc}/u);
  });

  it.each([
    ["short", 10, "short"],
    ["exactly-10", 10, "exactly-10"],
    ["longer-than-10", 10, "longer-th…"],
    ["漢字漢字", 5, "漢字…"],
    ["e\u0301e\u0301e\u0301", 3, "e\u0301e\u0301e\u0301"],
    ["x", 0, ""],
  ])("%s in %d cells is %s", (text, width, expected) => {
    expect(cut(text, width)).toBe(expected);
    expect(widthOf(cut(text, width))).toBeLessThanOrEqual(width);
  });

  it.each([
    [0, "0.0 s"],
    [9940, "9.9 s"],
    [12_400, "12 s"],
    [125_000, "2 min 5 s"],
  ])("%d ms are %s", (ms, expected) => {
    expect(duration(ms)).toBe(expected);
  });

  it("a bar is full at the end, and never overfull", () => {
    expect([bar(0, 0, 4), bar(1, 2, 4), bar(4, 4, 4), bar(9, 4, 4)]).toEqual(["░░░░", "██░░", "████", "████"]);
  });
});
