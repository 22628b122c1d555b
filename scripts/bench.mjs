// `npm run bench`: set-up, then the figures of this machine (`npm run bench -- --help`). `npm run bench -- --microvm [ROUNDS [CHART.svg]]`: those of
// virtual machines.
import path from "node:path";
import { attach, fail, pinnedNode, root } from "./lib/run.mjs";
import { setup } from "./lib/setup.mjs";

await setup({ development: true }).catch(fail);
const [first, ...rest] = process.argv.slice(2);
const [program, args] = first === "--microvm" ? ["microvm.ts", rest] : ["run.ts", process.argv.slice(2)];
process.exitCode = await attach(pinnedNode, [path.join(root, "test/bench", program), ...args]);
