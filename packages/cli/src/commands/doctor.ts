import { access, constants, statfs } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { Command } from "commander";
import { Exit, exitCodes } from "../exit.ts";
import { defaultDataDir } from "../local-server.ts";
import { print } from "../output.ts";
import { withProgress } from "../progress.ts";

type Verdict = "PASS" | "WARN" | "FAIL";

interface Check {
  readonly verdict: Verdict;
  readonly name: string;
  readonly detail: string;
  readonly remediation?: string | undefined;
}

const freeBytesMin = 5 * 2 ** 30;
const kernelMin = [5, 10] as const;

export function doctorCommand(): Command {
  return new Command("doctor")
    .description("say which engine this machine gets, why, and what to install for a better one")
    .option("--data-dir <dir>", "data directory to check (default: that of `mitos serve`)")
    .action(async ({ dataDir }: { dataDir?: string }) => {
      const checks = await withProgress("looking at this machine", inspect(path.resolve(dataDir ?? defaultDataDir())));
      print("Mitos doctor\n");
      for (const check of checks) printCheck(check);
      const count = (verdict: Verdict) => checks.filter((check) => check.verdict === verdict).length;
      print(`\n${count("PASS")} passed, ${count("WARN")} warnings, ${count("FAIL")} failed`);
      if (count("FAIL") > 0) {
        print("This machine cannot run sandboxes yet: follow the remediations above.");
        throw new Exit(exitCodes.failure);
      }
      print("This machine is ready: `mitos serve`.");
    });
}

async function inspect(dataDir: string): Promise<Check[]> {
  return [platform(), ...(await engine()), await kvm(), await space(dataDir)];
}

function printCheck({ verdict, name, detail, remediation }: Check): void {
  print(`  [${verdict}] ${name}: ${detail}`);
  if (verdict !== "PASS" && remediation) print(`         remediation: ${remediation}`);
}

function platform(): Check {
  const name = "platform";
  const detail = `${os.type()} ${os.release()} on ${os.machine()}`;
  const [major = 0, minor = 0] = os.release().split(".").map(Number);
  const old = major < kernelMin[0] || (major === kernelMin[0] && minor < kernelMin[1]);
  if (process.platform !== "linux") {
    return { verdict: "FAIL", name, detail, remediation: "Run the server on Linux; this machine can be a client of it (--server)." };
  }
  if (old)
    return { verdict: "WARN", name, detail, remediation: `Use a kernel of ${kernelMin.join(".")} or newer; older ones are not tested.` };
  return { verdict: "PASS", name, detail };
}

/** What `--engine auto` would take, and what is weaker than it could be. */
async function engine(): Promise<Check[]> {
  const { probeGvisor } = await import("@mitos/engine");
  const probe = await probeGvisor();
  if (!probe.usable) {
    return [{ verdict: "FAIL", name: "engine-gvisor", detail: probe.detail, remediation: probe.remedies.join(" ") }];
  }
  const chosen: Check = { verdict: "PASS", name: "engine", detail: `${probe.isolation}: ${probe.detail}` };
  const remediation = probe.remedies.join(" ") || undefined;
  return [chosen, ...probe.weaknesses.map((detail): Check => ({ verdict: "WARN", name: "weaker", detail, remediation }))];
}

/** Says why sandboxes are not microVMs here; the device existing proves nothing. */
async function kvm(): Promise<Check> {
  const name = "kvm-device";
  try {
    await access("/dev/kvm", constants.R_OK | constants.W_OK);
    return { verdict: "PASS", name, detail: "/dev/kvm is there; this version runs sandboxes in gVisor all the same" };
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? "";
    return { verdict: "PASS", name, detail: `/dev/kvm: ${code === "ENOENT" ? "absent" : code}; not needed, gVisor works without it` };
  }
}

async function space(dataDir: string): Promise<Check> {
  const name = "data-dir-space";
  const { bsize, bavail } = await statfs(await nearestExisting(dataDir));
  const free = bsize * bavail;
  const detail = `${(free / 2 ** 30).toFixed(1)} GiB free for ${dataDir}`;
  if (free >= freeBytesMin) return { verdict: "PASS", name, detail };
  return { verdict: "WARN", name, detail, remediation: "Free some space or choose another --data-dir: paused sandboxes are kept there." };
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
