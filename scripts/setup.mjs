// `npm run setup`: the set-up alone, with what the checks and tests need. `npm test` does the same first, `npm run quickstart` without these.
import { fail } from "./lib/run.mjs";
import { setup } from "./lib/setup.mjs";

await setup({ development: true }).catch(fail);
