// `npm run bench [-- ROUNDS]`: set-up, then the figures of this machine.
import path from "node:path";
import { attach, fail, pinnedNode, root } from "./lib/run.mjs";
import { setup } from "./lib/setup.mjs";

await setup({ development: true }).catch(fail);
process.exitCode = await attach(pinnedNode, [path.join(root, "test/bench/run.ts"), ...process.argv.slice(2)]);
