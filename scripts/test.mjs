// `npm test`: set-up, then every check and every suite: what CI runs. `npm test -- --only NAME` runs one part.
import { spawn } from "node:child_process";
import path from "node:path";
import { findImageTool } from "./lib/image-tools.mjs";
import { partsFolder, readPart } from "./lib/microvm/parts.mjs";
import { fail, pinnedNode, root } from "./lib/run.mjs";
import { findRunsc } from "./lib/runsc.mjs";
import { setup } from "./lib/setup.mjs";

const bin = (name) => path.join(root, "node_modules/.bin", name);
const guest = path.join(root, "guest");
const vitest = [
  pinnedNode,
  bin("vitest"),
  "run",
  "--silent=passed-only",
  "--reporter=default",
  "--reporter=./test/support/skip-reasons.ts",
];

/**
 * Suites that are run on microVMs as well, by what their paths contain: those of virtual machines alone, and others. TCG runs on every machine.
 *
 * Others can be run there too (docs/microvm.md) and are left out: egress, previews, contexts, run_code and refusals are the work of the server,
 * of the agent and of the kernels, which are the same on both engines, and take an emulated processor minutes.
 */
const microvmSuites = {
  own: ["test/microvm"],
  others: [
    "test/conformance",
    "test/e2e/fork-correctness",
    "test/e2e/escape",
    "test/engine/fork",
    "test/engine/pool",
    "test/images/sandboxes",
    "test/faults/kill",
    "test/faults/machines",
    "test/faults/own-kernel",
    "test/faults/restart",
  ],
};

/** Two lanes run side by side, since the machine may have two cores only. They take about the same time. */
const lanes = [
  [
    { name: "format and lint", command: [bin("biome"), "ci", "--error-on-warnings", "--colors=off"] },
    { name: "types", command: [bin("tsc"), "-p", "."] },
    { name: "generated code", command: [pinnedNode, "scripts/generate.mjs", "--check"] },
    { name: "rust format", command: ["cargo", "fmt", "--check"], cwd: guest },
    { name: "rust lint", command: ["cargo", "clippy", "--quiet", "--locked", "--all-targets", "--", "-D", "warnings"], cwd: guest },
    {
      name: "rust tests",
      command: ["cargo", "test", "--quiet", "--locked", "--", "--include-ignored", "--skip", "under_gvisor", "--skip", "under_qemu"],
      cwd: guest,
      count: countCargo,
    },
    {
      name: "agent under gVisor",
      command: inUserNamespace("cargo", "test", "--quiet", "--locked", "--test", "agent_gvisor", "--", "--ignored", "under_gvisor"),
      cwd: guest,
      count: countCargo,
    },
    {
      name: "guest and shim with virtual machines",
      command: ["cargo", "test", "--quiet", "--locked", "--", "--ignored", "under_qemu"],
      cwd: guest,
      count: countCargo,
    },
    { name: "kernels", command: [pinnedNode, "test/support/kernel-tests.ts"], count: countUnittest },
    { name: "faults, clients and frameworks", command: [...vitest, "--project", "faults"], count: countVitest },
    onMicrovms("microVM suites: virtual machines", microvmSuites.own),
  ],
  [
    { name: "units", command: [...vitest, "--project", "units"], count: countVitest },
    { name: "engine suites", command: [...vitest, "--project", "engine"], count: countVitest },
    onMicrovms("microVM suites: the others", microvmSuites.others),
  ],
];

function onMicrovms(name, paths) {
  const command = [...vitest, "--project", "engine", "--project", "faults", ...paths];
  return { name, command, env: { MITOS_TEST_ENGINE: "microvm" }, count: countVitest };
}

/** The agent's own tests start runsc without a shim, which would make the user namespace that runsc needs when the user is not root. */
function inUserNamespace(...command) {
  return process.getuid() === 0 ? command : ["unshare", "--user", "--map-root-user", ...command];
}

/** For the tests of file system images. */
function fsckErofs() {
  const { command, env } = findImageTool("erofs-utils");
  return { MITOS_FSCK_EROFS: command, MITOS_FSCK_EROFS_LIBRARIES: env.LD_LIBRARY_PATH ?? "" };
}

/** For native tests that start virtual machines. */
function microvmParts() {
  const [vmm, kernel, disk, rootImage] = ["vmm", "kernel", "disk", "root"].map((part) => {
    const made = readPart(part);
    return made && path.join(partsFolder, made.name);
  });
  // Of this processor there are none.
  if (!(vmm && kernel && disk && rootImage)) return {};
  return {
    MITOS_QEMU_ROOT: vmm,
    MITOS_VM_KERNEL: path.join(kernel, "vmlinux"),
    MITOS_VM_MODULES: path.join(kernel, "modules"),
    MITOS_VM_DISK: disk,
    MITOS_VM_ROOT: rootImage,
    MITOS_VM_AGENT: path.join(guest, "target/x86_64-unknown-linux-gnu/release/mitos-guest"),
  };
}

await setup({ development: true }).catch(fail);
const environment = { ...process.env, FORCE_COLOR: "0", NO_COLOR: "1", MITOS_RUNSC: findRunsc().path, ...fsckErofs(), ...microvmParts() };
const only = process.argv.includes("--only") ? process.argv[process.argv.indexOf("--only") + 1] : undefined;
/** Since this program began. CI gives up after ninety minutes, and of a part that hangs, what it printed until then is worth more than the rest of them. */
const deadlineMs = 80 * 60_000;
/** Of a part that takes longer than this, its slowest files are told. */
const longPartMs = 120_000;
const slowestShown = 8;
/** What a part that is told to end has for its clean-up. */
const endDeadlineMs = 10_000;
const running = new Set();
let interruptedBy;
for (const signal of ["SIGINT", "SIGTERM"]) {
  process.on(signal, () => {
    interruptedBy = signal;
    for (const child of running) endGroup(child, signal);
  });
}

process.stderr.write("\nTesting\n");
const results = (await Promise.all(lanes.map(runLane))).flat();
summarise(results);

async function runLane(parts) {
  const done = [];
  for (const part of parts) {
    if (interruptedBy) break;
    if (only && part.name !== only) continue;
    done.push(await runPart(part));
  }
  return done;
}

async function runPart(part) {
  const started = Date.now();
  const { code, output } = await run(part);
  const tookMs = Date.now() - started;
  const seconds = (tookMs / 1000).toFixed(1);
  const counts = part.count?.(output) ?? { passed: code === 0 ? 1 : 0, failed: code === 0 ? 0 : 1, skipped: 0 };
  const ok = code === 0 && counts.failed === 0 && counts.passed > 0;
  process.stderr.write(`  ${ok ? "✓" : "✗"} ${part.name} (${describe(counts)}) ${seconds} s\n`);
  if (!ok) process.stderr.write(`${output.trimEnd()}\n`);
  else for (const [reason] of output.matchAll(/^(?:skipped|not run): .*$/gm)) process.stderr.write(`      ${reason}\n`);
  const slowest = tookMs > longPartMs ? slowestFiles(output) : "";
  if (slowest) process.stderr.write(`      slowest: ${slowest}\n`);
  return { ...counts, failed: ok ? 0 : Math.max(1, counts.failed) };
}

function run({ command: [program, ...args], cwd = root, env = {} }) {
  return new Promise((resolve) => {
    const child = spawn(program, args, {
      cwd,
      stdio: ["ignore", "pipe", "pipe"],
      env: { ...environment, ...env },
      // A group of its own, so that what a part started ends with it.
      detached: true,
    });
    running.add(child);
    let output = "";
    const deadline = setTimeout(() => {
      output += `\nnot finished ${deadlineMs / 60_000} minutes after the start: ended\n`;
      endGroup(child, "SIGTERM");
    }, deadlineMs - performance.now());
    for (const stream of [child.stdout, child.stderr]) stream.setEncoding("utf8").on("data", (text) => (output += text));
    child.on("error", (error) => (output += `${program}: ${error.message}\n`));
    child.on("close", (code) => {
      clearTimeout(deadline);
      running.delete(child);
      resolve({ code, output });
    });
  });
}

/** What is left of it after the time for its clean-up is killed. */
function endGroup(child, signal) {
  if (!child.pid) return;
  process.kill(-child.pid, signal);
  setTimeout(() => {
    if (running.has(child)) process.kill(-child.pid, "SIGKILL");
  }, endDeadlineMs).unref();
}

/** As the reporter tells them; several files run at once. */
function slowestFiles(output) {
  const files = [...output.matchAll(/^ *[✓❯] .*?(\S+)\.test\.ts \(.*\) (\d+)ms$/gm)].map(([, name, ms]) => ({ name, ms: Number(ms) }));
  files.sort((a, b) => b.ms - a.ms);
  return files
    .slice(0, slowestShown)
    .map(({ name, ms }) => `${name} ${Math.round(ms / 1000)} s`)
    .join(", ");
}

function countVitest(output) {
  const line = /^\s*Tests\s+(.*)$/m.exec(output)?.[1] ?? "";
  const number = (word) => Number(new RegExp(`(\\d+) ${word}`).exec(line)?.[1] ?? 0);
  return { passed: number("passed"), failed: number("failed"), skipped: number("skipped") + number("todo") };
}

function countCargo(output) {
  const sum = { passed: 0, failed: 0, skipped: 0 };
  for (const [, passed, failed, ignored] of output.matchAll(/(\d+) passed; (\d+) failed; (\d+) ignored/g)) {
    sum.passed += Number(passed);
    sum.failed += Number(failed);
    sum.skipped += Number(ignored);
  }
  return sum;
}

function countUnittest(output) {
  const ran = Number(/^Ran (\d+) tests?/m.exec(output)?.[1] ?? 0);
  const number = (word) => Number(new RegExp(`${word}=(\\d+)`).exec(output)?.[1] ?? 0);
  const failed = number("failures") + number("errors");
  return { passed: ran - failed - number("skipped"), failed, skipped: number("skipped") };
}

function describe({ passed, failed, skipped }) {
  return [`${passed} passed`, failed ? `${failed} failed` : "", skipped ? `${skipped} skipped` : ""].filter(Boolean).join(", ");
}

function summarise(parts) {
  const total = (key) => parts.reduce((sum, part) => sum + part[key], 0);
  process.stdout.write(`\n${total("passed")} passed, ${total("failed")} failed, ${total("skipped")} skipped\n`);
  if (interruptedBy) process.stdout.write(`interrupted (${interruptedBy}): the rest did not run\n`);
  process.exitCode = total("failed") === 0 && total("passed") > 0 && !interruptedBy ? 0 : 1;
}
