#!/usr/bin/env node
// Hands over to the pinned Node when the one that runs this is older than what the code needs. Plain JavaScript for Node 18.
import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import module from "node:module";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";

const neededMajor = 24;
const here = path.dirname(fileURLToPath(import.meta.url));

if (Number(process.versions.node.split(".")[0]) >= neededMajor) {
  // Reading TypeScript is most of a start. A cache that cannot be written is no failure.
  module.enableCompileCache(path.join(process.env.XDG_CACHE_HOME || path.join(os.homedir(), ".cache"), "mitos/compiled"));
  const { main } = await import("../src/main.ts");
  await main(process.argv.slice(2));
} else {
  const pinned = pinnedNode();
  if (pinned) handOver(pinned);
  else {
    process.stderr.write(`error: Node.js ${process.versions.node} is too old\n`);
    process.stderr.write("cause: the pinned Node.js is not installed in node_modules\n");
    process.stderr.write(`next step: run \`npm run setup\` in the checkout, or use Node.js ${neededMajor} or newer\n`);
    process.exitCode = 1;
  }
}

/** The one of the `node` package, in whichever node_modules above us it was put. */
function pinnedNode() {
  for (let dir = here; ; dir = path.dirname(dir)) {
    const candidate = path.join(dir, "node_modules/node/bin/node");
    if (existsSync(candidate)) return candidate;
    if (path.dirname(dir) === dir) return undefined;
  }
}

/** Node cannot replace its own process, so this one stays as a go-between that adds nothing. */
function handOver(node) {
  const child = spawn(node, [fileURLToPath(import.meta.url), ...process.argv.slice(2)], { stdio: "inherit" });
  // A terminal sends Ctrl-C to both processes, others to this one alone: it is passed on always, and the other end takes two for one.
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, () => child.kill(signal));
  child.on("error", (error) => {
    process.stderr.write(
      `error: ${node} could not be started\ncause: ${error.message}\nnext step: run \`npm run setup\` in the checkout\n`,
    );
    process.exit(1);
  });
  child.on("exit", (code, signal) => process.exit(code ?? 128 + (os.constants.signals[signal] ?? 0)));
}
