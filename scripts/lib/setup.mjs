// Everything that a fresh clone needs before it can run: npm packages, the guest binary, runsc. Each part looks first and works only
// when something is missing or out of date, so that the second run takes a moment.
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { ensureBaseImage } from "./base-image.mjs";
import { ensureChromium } from "./chromium.mjs";
import { ensureImageTools } from "./image-tools.mjs";
import { lockFile } from "./lock-addresses.mjs";
import { ensureMicrovm } from "./microvm/index.mjs";
import { npmInstall } from "./npm-install.mjs";
import { answers, cache, capture, captureBeside, pinnedNode, root, SetupError, step, stepsBeside } from "./run.mjs";
import { ensureBaselineRunsc, ensureRunsc } from "./runsc.mjs";

/** @param options - `development`: also what the checks and tests need, about 2.5 GB; what runs Mitos is 0.4 GB */
export async function setup({ development = false } = {}) {
  if (process.platform !== "linux") {
    throw new SetupError(
      `Mitos runs sandboxes on Linux only; this is ${process.platform}`,
      "Use a Linux machine or a Linux VM. The SDK and the CLI's client commands run anywhere.",
    );
  }
  process.stderr.write("Setting up\n");
  await stepsBeside({
    "npm packages": (options) => installPackages(development, options),
    "guest agent": buildGuest,
    "runsc (gVisor)": ensureRunsc,
    ...(development ? { "runsc of the bench's baseline": ensureBaselineRunsc } : {}),
  });
  if (!development) return;
  await step("Chromium", ensureChromium);
  await step("registry and image tools", ensureImageTools);
  await step("base image of the tests", ensureBaseImage);
  if (process.arch === "x64") await ensureMicrovm();
}

async function installPackages(development, { signal }) {
  const stamp = path.join(cache, "npm.stamp");
  const wanted = createHash("sha256").update(readFileSync(lockFile)).digest("hex");
  const all = `${wanted} with development`;
  const have = existsSync(stamp) ? readFileSync(stamp, "utf8") : "";
  if ((have === all || (have === wanted && !development)) && existsSync(pinnedNode)) return "up to date";
  await npmInstall(development ? [] : ["--omit=dev"], { signal });
  if (!answers(pinnedNode)) {
    throw new SetupError(
      "npm installed the packages, but the pinned Node does not start",
      "If npm was told to ignore scripts (npm config get ignore-scripts), allow them for this project.",
    );
  }
  mkdirSync(cache, { recursive: true });
  writeFileSync(stamp, development ? all : wanted);
  return undefined;
}

async function buildGuest({ signal }) {
  if (!answers("cargo")) {
    throw new SetupError(
      "cargo is missing; the guest agent is written in Rust",
      "Install Rust 1.85 or newer (rustup, or your distribution's cargo).",
    );
  }
  const manifest = path.join(root, "guest/Cargo.toml");
  await captureBeside("cargo", ["build", "--release", "--locked", "--quiet", "--manifest-path", manifest, "--target", hostTarget()], {
    signal,
    cwd: path.join(root, "guest"),
    remedy: "Rust 1.85 or newer and a C linker (gcc) are needed; cargo must reach its registry the first time.",
  });
  return hostTarget();
}

/** The machine's own target: it is named to cargo so that static linking does not reach build scripts. */
function hostTarget() {
  const line = capture("rustc", ["-vV"])
    .split("\n")
    .find((text) => text.startsWith("host: "));
  return line.slice("host: ".length).trim();
}
