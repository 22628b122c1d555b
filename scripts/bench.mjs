// `npm run bench`: set-up, then the figures of this machine (`npm run bench -- --help`). `--microvm [ROUNDS [PICTURE.svg]]` first: those of virtual
// machines; `--profile [ROUNDS [PICTURE.svg]]`: where the time goes.
import path from "node:path";
import { attach, fail, pinnedNode, root } from "./lib/run.mjs";
import { setup } from "./lib/setup.mjs";

await setup({ development: true }).catch(fail);
const [first, ...rest] = process.argv.slice(2);
const others = { "--microvm": "microvm.ts", "--profile": "profile/run.ts" };
const [program, args] = Object.hasOwn(others, first ?? "") ? [others[first], rest] : ["run.ts", process.argv.slice(2)];
process.exitCode = await attach(pinnedNode, [path.join(root, "test/bench", program), ...args]);
