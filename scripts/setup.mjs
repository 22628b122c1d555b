// `npm run setup`: the set-up alone. `npm run quickstart` and `npm test` do the same first.
import { fail } from "./lib/run.mjs";
import { setup } from "./lib/setup.mjs";

await setup().catch(fail);
