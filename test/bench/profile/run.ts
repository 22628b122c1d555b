// `npm run bench -- --profile [ROUNDS [PICTURE.svg]]`: where each millisecond of the hot paths goes, as a table and as a picture.
import { writeFileSync } from "node:fs";
import { orUsage, parseRoundsAndFile } from "../arguments.ts";
import { describeHost, hostLine } from "../host.ts";
import { showProgress } from "../progress.ts";
import { fullScale } from "../scale.ts";
import { measurePaths } from "./measure.ts";
import { drawPaths, tableOfPaths } from "./picture.ts";

const roundsDefault = 9;

const { rounds, file } = orUsage(() => parseRoundsAndFile("--profile", process.argv.slice(2), roundsDefault));
const host = describeHost();
using progress = showProgress();
const paths = await measurePaths({ rounds, warmUp: fullScale.warmUp, say: (what) => progress.say(what) });
process.stdout.write(`\n${hostLine(host)}, ${rounds} rounds\n\n${tableOfPaths(paths)}\n`);
if (file !== undefined) writeFileSync(file, drawPaths(paths));
