// Builds the runsc that scripts/runsc pins from its source, where Go is: a newer one than distributions have, with what it needs to hold.
import { createHash } from "node:crypto";
import { chmodSync, cpSync, existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { answers, cache, capture, captureBeside, removeLeftovers, root, SetupError } from "./run.mjs";

/** A Go module: the release to build, and the checksums of all that it is made of. */
const module = path.join(root, "scripts/runsc");
const gvisor = "gvisor.dev/gvisor";
/** The first one that fetches the Go that a module asks for. */
const oldestGo = { major: 1, minor: 21 };
/** A quick machine takes a minute, a slow one five. Nobody should wait longer for what there is another one for. */
const longestBuildMs = 10 * 60_000;

/**
 * What is changed in its source first.
 *
 * systrap: a host thread marks a program as its own and then says which thread it is; it takes that back before it tells that it is done.
 * In between the sentry finds no thread to interrupt, and since summer 2026 kills the program for that. A thread that has lost the
 * processor there for 10 ms, on a busy host, is not gone: the program has been asked to stop, so it is looked at again as after any
 * other interrupt, and it is still killed when nothing has moved for 30 s.
 */
const corrections = [
  {
    file: "pkg/sentry/platform/systrap/shared_context.go",
    from: "if _, err := sc.interruptStub(); err != nil {",
    to: "if _, err := sc.interruptStub(); err != nil && err != errNoStubThread {",
  },
];

/** What the one that is built says of itself. */
export const builtVersion = `${pinnedVersion()}+mitos.${createHash("sha256").update(JSON.stringify(corrections)).digest("hex").slice(0, 8)}`;

/**
 * Modules, the Go that they ask for, what is compiled and what Go keeps meanwhile lie in a folder of their own, and go with it.
 *
 * A build that has taken too long is remembered beside the binary, and not tried again before another release is pinned.
 *
 * @param binary - where it goes
 * @returns why there is none: nothing that keeps the set-up from going on with another one
 */
export async function buildRunsc(binary, { signal, longestMs = longestBuildMs } = {}) {
  if (!hasGo()) return `Go ${oldestGo.major}.${oldestGo.minor} or newer was not found`;
  const givenUp = `${binary}.given-up`;
  if (existsSync(givenUp) && readFileSync(givenUp, "utf8") === builtVersion) {
    return `building a newer one took too long here before; to try again, remove ${path.relative(root, givenUp)}`;
  }
  const deadline = Date.now() + longestMs;
  removeLeftovers(cache, "runsc-build-");
  const work = path.join(cache, `runsc-build-${process.pid}`);
  const source = path.join(work, "source");
  const built = path.join(work, "runsc");
  const temporary = path.join(work, "temporary");
  const go = (...args) =>
    captureBeside("go", args, {
      cwd: source,
      signal,
      timeout: Math.max(1, deadline - Date.now()),
      // At this one Go waits for the compilers that it has started.
      killSignal: "SIGINT",
      env: {
        ...process.env,
        CGO_ENABLED: "0",
        GOWORK: "off",
        // Go protects what it has downloaded from being removed, else.
        GOFLAGS: "-modcacherw",
        GOMODCACHE: path.join(work, "modules"),
        GOCACHE: path.join(work, "compiled"),
        GOTMPDIR: temporary,
        GOTOOLCHAIN: "auto",
      },
    });
  try {
    mkdirSync(temporary, { recursive: true });
    cpSync(module, source, { recursive: true });
    await go("mod", "vendor");
    correct(path.join(source, "vendor", gvisor));
    const stamp = `-s -w -X ${gvisor}/runsc/version.version=${builtVersion}`;
    await go("build", "-mod=vendor", "-trimpath", "-buildvcs=false", `-ldflags=${stamp}`, "-o", built, `${gvisor}/runsc`);
    chmodSync(built, 0o755);
    if (!capture(built, ["--version"]).includes(builtVersion)) return "the runsc that was built is another one";
    mkdirSync(path.dirname(binary), { recursive: true });
    renameSync(built, binary);
    return undefined;
  } catch (error) {
    if (!(error instanceof SetupError) || signal?.aborted) throw error;
    if (Date.now() >= deadline) {
      mkdirSync(path.dirname(givenUp), { recursive: true });
      writeFileSync(givenUp, builtVersion);
      return `building a newer one was not done in ${longestMs / 60_000} minutes`;
    }
    return `building a newer one failed (${error.message.split("\n").at(-1)})`;
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

function correct(source) {
  for (const { file, from, to } of corrections) {
    const text = readFileSync(path.join(source, file), "utf8");
    if (text.split(from).length !== 2) throw new SetupError(`${file} of the pinned release is not as expected`);
    writeFileSync(path.join(source, file), text.replace(from, to));
  }
}

function hasGo() {
  const env = { ...process.env, GOTOOLCHAIN: "local" };
  if (!answers("go", ["version"], env)) return false;
  const [, major, minor] = /\bgo(\d+)\.(\d+)/.exec(capture("go", ["version"], { env })) ?? [];
  return Number(major) > oldestGo.major || (Number(major) === oldestGo.major && Number(minor) >= oldestGo.minor);
}

function pinnedVersion() {
  return new RegExp(`${gvisor} (v\\S+)`).exec(readFileSync(path.join(module, "go.mod"), "utf8"))[1];
}
