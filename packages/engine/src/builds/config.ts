import path from "node:path";
import { limits, MitosError } from "@mitos/protocol";
import type { BuildStep } from "../actions.ts";
import type { ImageConfig } from "../images/image.ts";
import { checkEnv, checkPath, checkShortText, invalid, textBytes } from "../runtime-input.ts";

export const emptyConfig: ImageConfig = { env: {}, workdir: "", user: "", entrypoint: [], command: [], labels: {} };

/**
 * What an image says about running it comes from a stranger and goes to the agent as it is: only what a request may say as well passes.
 *
 * @throws build_failed
 */
export function checkImageConfig(config: ImageConfig, reference: string): ImageConfig {
  try {
    checkEnv(config.env);
    if (config.user) checkUser(config.user);
    checkArguments(config.entrypoint);
    checkArguments(config.command);
    if (config.workdir) checkPath(config.workdir, "the working directory");
    // Some images say it relative to the root.
    return { ...config, workdir: config.workdir && path.posix.resolve("/", config.workdir) };
  } catch (error) {
    throw new MitosError("build_failed", {
      cause: `the configuration of ${reference} cannot be used: ${(error as MitosError).detail.cause ?? "it is not valid"}`,
      remediation: "Use another image: this one has been made wrongly.",
      reason: error,
    });
  }
}

/** @throws invalid_input */
export function checkUser(user: string): void {
  checkShortText(user, "user");
  // It is looked up in the files of the image, whose lines and fields these divide.
  if (!/^[^\s:,]+(:[^\s:,]+)?$/.test(user)) throw invalid("a user is a name or number, with or without :group");
}

/** @throws invalid_input */
export function checkArguments(argv: readonly string[]): void {
  let bytes = 0;
  for (const argument of argv) bytes += textBytes(argument, "an argument") + 1;
  if (bytes > limits.commandBytesMax) throw invalid(`the command is longer than ${limits.commandBytesMax} bytes`);
}

/** The configuration after a step. What `run` and `copy` change is files. */
export function configAfter(config: ImageConfig, step: BuildStep): ImageConfig {
  switch (step.kind) {
    case "env":
      return { ...config, env: { ...config.env, [step.name]: step.value } };
    case "workdir":
      return { ...config, workdir: resolveIn(config, step.path) };
    case "user":
      return { ...config, user: step.user };
    case "run":
    case "copy":
      return config;
  }
}

/** The same steps with the values that variables have then: what is stored under their names depends on nothing else. */
export function expandSteps(steps: readonly BuildStep[], base: ImageConfig): readonly BuildStep[] {
  let config = base;
  return steps.map((written) => {
    const step = written.kind === "env" && written.expand ? expandedEnv(written, config) : written;
    config = configAfter(config, step);
    return step;
  });
}

/** What no variable says is empty, as a shell has it. @throws invalid_input when it becomes too long */
function expandedEnv({ name, value }: Extract<BuildStep, { kind: "env" }>, { env }: ImageConfig): BuildStep {
  const known = (variable: string) => (Object.hasOwn(env, variable) ? env[variable]! : variable === "PATH" ? defaultPath : "");
  const expanded = value.replaceAll(/\$\{([A-Za-z_]\w*)\}/g, (_, variable: string) => known(variable));
  checkEnv({ [name]: expanded });
  return { kind: "env", name, value: expanded };
}

/** Where programs are looked for in an image that does not say it. */
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/** A path of a step, absolute; a slash at its end, which says that it is a folder, stays. */
export function resolveIn({ workdir }: ImageConfig, target: string): string {
  const resolved = path.posix.resolve("/", workdir, target);
  return target.endsWith("/") && resolved !== "/" ? `${resolved}/` : resolved;
}
