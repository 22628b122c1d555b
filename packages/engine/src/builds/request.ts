import { isTemplateId, limits, MitosError } from "@mitos/protocol";
import { type BuildStep, languages, type ReadyCheck, type TemplateRequest, type WarmCode, type Workload } from "../actions.ts";
import { checkEnv, checkPath, checkPort, invalid, textBytes } from "../runtime-input.ts";
import { checkArguments, checkUser } from "./config.ts";

const digestPattern = /^sha256:[0-9a-f]{64}$/;

/** What a definition must look like, before anything is done for it. @throws invalid_input, timeout_too_large */
export function checkTemplateRequest({ image, steps = [], warm, workload }: TemplateRequest): void {
  if (image !== undefined && !isTemplateId(image)) throw invalid("image must be the name of a template or an image reference");
  if (steps.length > limits.buildStepsMax) throw invalid(`more than ${limits.buildStepsMax} steps`);
  for (const [index, step] of steps.entries()) checkAt(`build_steps[${index}]`, () => checkStep(step));
  // Together, as programs get them.
  checkEnv(Object.fromEntries(steps.flatMap((step) => (step.kind === "env" ? [[step.name, step.value] as const] : []))));
  if (warm) checkAt("warm", () => checkWarm(warm));
  if (workload) checkAt("workload", () => checkWorkload(workload));
}

function checkStep(step: BuildStep): void {
  if (step.kind === "run") checkCommand(step.command);
  else if (step.kind === "env") checkEnv({ [step.name]: step.value });
  else if (step.kind === "workdir") checkPath(step.path);
  else if (step.kind === "user") checkUser(step.user);
  else {
    checkPath(step.dest, "dest");
    if (!digestPattern.test(step.context)) throw invalid("context is no digest");
  }
}

function checkWarm({ language, code, timeoutSeconds }: WarmCode): void {
  if (!languages.includes(language)) throw invalid(`language must be one of ${languages.join(", ")}`);
  checkCommand(code);
  checkSeconds(timeoutSeconds);
}

function checkWorkload({ command, env, ready }: Workload): void {
  checkArguments(command);
  checkEnv(env);
  if (ready) checkReady(ready);
}

/** @throws invalid_input, timeout_too_large */
export function checkReady(ready: ReadyCheck): void {
  checkSeconds(ready.timeoutSeconds);
  if (!["http", "port", "command"].includes(ready.kind)) throw invalid("a ready check is of the kind http, port or command");
  if (ready.kind === "command") return void checkCommand(ready.command);
  checkPort(ready.port);
  if (ready.kind === "port") return;
  if (!Number.isInteger(ready.expect)) throw invalid("expect must be a status of HTTP");
  // It goes into a line of HTTP as it is.
  if (typeof ready.path !== "string" || !/^\/[^\s\0]*$/.test(ready.path)) throw invalid("path must begin with / and hold no spaces");
}

function checkCommand(command: string): void {
  if (typeof command !== "string" || command === "") throw invalid("the command is empty");
  if (textBytes(command, "the command") > limits.commandBytesMax)
    throw invalid(`the command is longer than ${limits.commandBytesMax} bytes`);
}

function checkSeconds(seconds: number): void {
  if (!Number.isFinite(seconds) || seconds <= 0) throw invalid("a time-out must be a positive number of seconds");
  if (seconds > limits.timeoutSecondsMax) {
    throw new MitosError("timeout_too_large", {
      cause: `${seconds} s is above ${limits.timeoutSecondsMax} s`,
      context: { requested_s: seconds, max_timeout_s: limits.timeoutSecondsMax },
    });
  }
}

function checkAt(where: string, check: () => void): void {
  try {
    check();
  } catch (error) {
    if (!(error instanceof MitosError) || error.code !== "invalid_input") throw error;
    throw new MitosError("invalid_input", { ...error.detail, cause: `${where}: ${error.detail.cause}` });
  }
}
