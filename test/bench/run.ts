// `npm run bench`: what sandboxes on gVisor cost on this machine, over HTTP, in turn with what runsc costs by hand.
import { writeFileSync } from "node:fs";
import type { Log } from "@mitos/engine";
import { hostAvailableBytes } from "../../packages/engine/src/admission.ts";
import { imagesName, type MeasureArguments, orUsage, parseArguments, usage } from "./arguments.ts";
import { Bench } from "./bench.ts";
import { describeHost } from "./host.ts";
import { describeImages, type ImageFigures, measureImages } from "./images.ts";
import { type Progress, showProgress } from "./progress.ts";
import { type Report, reportOf, tableOf } from "./report.ts";
import type { Row } from "./row.ts";
import { rowsOf } from "./rows/index.ts";
import { measure } from "./runner.ts";
import { fitScale, fullScale } from "./scale.ts";

/** Images begin from nothing in each of their rounds, which takes as long as many of the others. */
const imageRoundsShare = 1 / 5;

const silent: Log = { debug: nothing, info: nothing, warn: nothing, error: nothing };
function nothing() {}

const { scale, notes } = fitScale(fullScale, hostAvailableBytes());
const rows = rowsOf(scale);
const names = [...rows.map(({ name }) => name), imagesName];

const asked = orUsage(() => parseArguments(process.argv.slice(2), names));
if (asked.kind === "help") process.stdout.write(usage(names));
else await run(asked);

async function run({ rounds, only, jsonFile }: MeasureArguments): Promise<void> {
  using progress = showProgress();
  const signal = interruption(progress);
  const chosen = rows.filter(({ name }) => only.has(name));
  const report = chosen.length > 0 ? await measureRows(chosen, { rounds, progress, signal }) : undefined;
  let images: ImageFigures | undefined;
  try {
    if (only.has(imagesName) && !signal.aborted) {
      progress.say(imagesName);
      images = await measureImages({ rounds: Math.ceil(rounds * imageRoundsShare), log: silent, signal });
      process.stdout.write(`\n${describeImages(images)}\n`);
    }
  } finally {
    if (jsonFile !== undefined) writeFileSync(jsonFile, `${JSON.stringify({ ...report, images }, null, 2)}\n`);
  }
  if (signal.aborted) process.exitCode = 130;
  else if (report && report.failures.length > 0) process.exitCode = 1;
}

interface Watched {
  readonly rounds: number;
  readonly progress: Progress;
  readonly signal: AbortSignal;
}

async function measureRows(chosen: readonly Row[], { rounds, progress, signal }: Watched): Promise<Report> {
  const host = describeHost();
  const startedAt = new Date().toISOString();
  progress.say("starting the server, and letting it serve some hundred calls before anything is measured");
  await using bench = await Bench.open({ warmUp: scale.warmUp, signal });
  const onRound = ({ name }: Row, round: number, all: number) => progress.say(`${name}: round ${round + 1} of ${all}`);
  const measured = await measure(chosen, bench, { rounds, onRound });
  const isPartial = signal.aborted ? ["interrupted: not everything was measured"] : [];
  const circumstances = {
    host,
    engine: "gvisor",
    runsc: bench.sameBuild.build,
    runscByHand: bench.baseline.build,
    startedAt,
    rounds,
    notes: [...notes, ...bench.notes, ...isPartial],
  };
  const report = reportOf(circumstances, measured);
  // Before the server ends, which fails when it leaves something.
  process.stdout.write(`\n${tableOf(report)}\n`);
  progress.say("ending the server");
  return report;
}

/** The first Ctrl-C lets the step that is under way end and then puts everything away; the second one is Node's own, which ends at once. */
function interruption(progress: Progress): AbortSignal {
  const interrupt = new AbortController();
  for (const name of ["SIGINT", "SIGTERM"] as const) {
    process.once(name, () => {
      progress.say("stopping, and putting everything away");
      interrupt.abort();
    });
  }
  return interrupt.signal;
}
