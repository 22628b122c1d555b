// `npm run build:sdk [-- FOLDER]`: the package that is published as @mitos/sdk, ready for `npm pack`. Default: packages/sdk/dist.
import path from "node:path";
import { answers, attach, fail, pinnedNode, root, SetupError } from "./lib/run.mjs";

if (!answers(pinnedNode)) fail(new SetupError("the npm packages are not installed", "Run npm run setup first."));
process.exitCode = await attach(pinnedNode, [path.join(root, "scripts/lib/sdk-package.ts"), ...process.argv.slice(2)]);
