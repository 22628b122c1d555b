import { access, stat, statfs } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import type { EngineSurvey } from "@mitos/engine";
import { Command } from "commander";
import { savedConfig } from "../config.ts";
import { connectionOf } from "../context.ts";
import { Exit, exitCodes } from "../exit.ts";
import { defaultDataDir } from "../local-server.ts";
import { isJson, type OutputOptions, outputFlags, print, printJson } from "../output.ts";
import { configFile } from "../private-files.ts";
import { withProgress } from "../progress.ts";
import { paint, type Style } from "../style.ts";

/** `NOTE`: something that does not work here and that nobody needs. */
type Verdict = "PASS" | "NOTE" | "WARN" | "FAIL";

export interface Check {
  readonly verdict: Verdict;
  readonly name: string;
  readonly detail: string;
  /** What to do about it, of every check that has not passed; of a note, what to do to have it all the same. */
  readonly remediation?: string | undefined;
}

const gib = 2 ** 30;
const dataBytesMin = 5 * gib;
const forkBytesMin = gib;
const kernelMin = [5, 10] as const;

interface DoctorOptions extends OutputOptions {
  dataDir?: string;
  deep?: boolean;
}

export function doctorCommand(): Command {
  const command = new Command("doctor")
    .option("--data-dir <dir>", "data directory to check (default: that of `mitos serve`)")
    .option("--deep", "also start a microVM under emulation, which takes some seconds");
  for (const flag of outputFlags()) command.addOption(flag);
  return command.action(async ({ dataDir, deep = false, ...options }: DoctorOptions) => {
    const work = inspect(path.resolve(dataDir ?? defaultDataDir()), deep, command);
    const checks = await withProgress("looking at this machine", work);
    const count = (verdict: Verdict) => checks.filter((check) => check.verdict === verdict).length;
    const summary = { passed: count("PASS"), warnings: count("WARN"), failed: count("FAIL") };
    if (isJson(options)) printJson({ checks, ...summary });
    else {
      print("Mitos doctor\n");
      for (const check of checks) printCheck(check);
      print(`\n${summary.passed} passed, ${summary.warnings} warnings, ${summary.failed} failed`);
      print(summary.failed > 0 ? "Not everything works here yet: follow the remediations above." : "This machine is ready: `mitos serve`.");
    }
    if (summary.failed > 0) throw new Exit(exitCodes.failure);
  });
}

async function inspect(dataDir: string, deep: boolean, command: Command): Promise<Check[]> {
  return [
    platform(),
    ...engineChecks(await survey(deep)),
    await space("data-dir-space", dataDir, dataBytesMin, "Free some space or choose another --data-dir: paused sandboxes are kept there."),
    await space(
      "fork-space",
      "/dev/shm",
      forkBytesMin,
      "Enlarge /dev/shm: forks of running sandboxes are saved there, else on the slower disk.",
    ),
    await configFiles(),
    await server(command),
  ];
}

const styles: Readonly<Record<Verdict, Style>> = { PASS: "green", NOTE: "dim", WARN: "yellow", FAIL: "red" };

function printCheck({ verdict, name, detail, remediation }: Check): void {
  print(`  [${paint(process.stdout, styles[verdict], verdict)}] ${name}: ${detail}`);
  if (verdict !== "PASS" && remediation) print(`         remediation: ${remediation}`);
}

function platform(): Check {
  const name = "platform";
  const detail = `${os.type()} ${os.release()} on ${os.machine()}, Node.js ${process.versions.node}`;
  const [major = 0, minor = 0] = os.release().split(".").map(Number);
  const old = major < kernelMin[0] || (major === kernelMin[0] && minor < kernelMin[1]);
  if (process.platform !== "linux") {
    return { verdict: "FAIL", name, detail, remediation: "Run the server on Linux; this machine can be a client of it (--server)." };
  }
  if (old)
    return { verdict: "WARN", name, detail, remediation: `Use a kernel of ${kernelMin.join(".")} or newer; older ones are not tested.` };
  return { verdict: "PASS", name, detail };
}

async function survey(deep: boolean): Promise<readonly EngineSurvey[]> {
  const { surveyEngines } = await import("@mitos/engine");
  return surveyEngines({ deep });
}

/** What `--engine auto` takes, what is weaker than it could be, and a line for every other way to run sandboxes: usable, or why not. */
export function engineChecks(found: readonly EngineSurvey[]): Check[] {
  const taken = found.find(({ isTaken }) => isTaken);
  const others = found.filter((each) => each !== taken).map((each) => otherEngine(each, taken !== undefined));
  return [...(taken ? takenEngine(taken) : []), ...others];
}

function takenEngine({ result: { isolation, detail, remedies, weaknesses } }: EngineSurvey): Check[] {
  const remediation = remedies.join(" ") || "Nothing has to be done: sandboxes run, with this much less.";
  return [
    { verdict: "PASS", name: "engine", detail: `${isolation}: ${detail}` },
    ...weaknesses.map((weakness): Check => ({ verdict: "WARN", name: "weaker", detail: weakness, remediation })),
  ];
}

/** @param isOptional - sandboxes run without it */
function otherEngine({ result: { usable, isolation, detail, remedies }, flags }: EngineSurvey, isOptional: boolean): Check {
  const name = `engine-${isolation}`;
  if (usable) return { verdict: "PASS", name, detail: `${detail}; taken with ${flags}` };
  return { verdict: isOptional ? "NOTE" : "FAIL", name, detail, remediation: remedies.join(" ") };
}

async function space(name: string, dir: string, bytesMin: number, remediation: string): Promise<Check> {
  const { bsize, bavail } = await statfs(await nearestExisting(dir));
  const free = bsize * bavail;
  const detail = `${(free / gib).toFixed(1)} GiB free for ${dir}`;
  return free >= bytesMin ? { verdict: "PASS", name, detail } : { verdict: "WARN", name, detail, remediation };
}

async function nearestExisting(dir: string): Promise<string> {
  for (let at = dir; ; at = path.dirname(at)) {
    const exists = await access(at).then(
      () => true,
      () => false,
    );
    if (exists || path.dirname(at) === at) return at;
  }
}

/** Keys lie in them: nobody else may read them. What is in them is not shown. */
export async function configFiles(): Promise<Check> {
  const name = "config-files";
  const found: string[] = [];
  for (const file of ["credentials.json", "config.json"].map(configFile)) {
    const info = await stat(file).catch(() => undefined);
    if (!info) continue;
    if (info.mode & 0o077) {
      return { verdict: "WARN", name, detail: `${file} can be read by others`, remediation: `Take that away: chmod 600 ${file}` };
    }
    found.push(path.basename(file));
  }
  if (found.includes("config.json") && !savedConfig()) {
    return {
      verdict: "WARN",
      name,
      detail: `${configFile("config.json")} is ignored: it cannot be understood`,
      remediation: "Write it anew: mitos init",
    };
  }
  return {
    verdict: "PASS",
    name,
    detail: found.length > 0 ? `${found.join(" and ")}, for you alone` : "none, which is fine for a server without keys",
  };
}

/** The one that other commands would talk to. That none runs is a failure only where one was named. */
async function server(command: Command): Promise<Check> {
  const name = "server";
  const { AgentRunError, HttpClient } = await import("@mitos/sdk");
  const connection = connectionOf(command);
  const http = HttpClient.fromAuth(connection);
  try {
    const health = (await http.get("/v1/health", { signal: AbortSignal.timeout(serverAnswerMsMax) })) as {
      version?: string;
      isolation?: string;
    };
    return {
      verdict: "PASS",
      name,
      detail: `${http.baseUrl}: version ${health.version ?? "unknown"}, isolation ${health.isolation ?? "unknown"}`,
    };
  } catch (error) {
    if (!(error instanceof AgentRunError)) throw error;
    const detail = `${http.baseUrl}: ${error.message}`;
    if (!connection.baseUrl && error.status === undefined)
      return { verdict: "PASS", name, detail: `${detail}; start one with \`mitos serve\`` };
    return { verdict: "FAIL", name, detail, remediation: error.remediation };
  }
}

const serverAnswerMsMax = 5_000;
