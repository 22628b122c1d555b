// `npm run quickstart`: sets everything up, then does the main job before the user's eyes.
import path from "node:path";
import { attach, fail, pinnedNode, root } from "./lib/run.mjs";
import { setup } from "./lib/setup.mjs";

await setup().catch(fail);
process.exitCode = await attach(pinnedNode, [path.join(root, "packages/cli/src/main.ts"), "quickstart", ...process.argv.slice(2)]);
