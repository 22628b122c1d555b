import { parseDockerfile } from "./dockerfile.ts";
import { AgentRunError, isObject } from "./errors.ts";
import { type Command, requireArgv } from "./exec.ts";
import { splitCommand } from "./split-command.ts";
import type { Network, ReadyCheck } from "./types.ts";

/** One step of a build; they run in order. What `env`, `workdir` and `user` say holds for the steps after them and for the sandboxes. */
export type BuildStep =
  | { type: "run"; run: string }
  /** `expand`: `${NAME}` in the value stands for what the variable is before this step, the image's own variables included. */
  | { type: "env"; envName: string; envValue: string; expand?: true }
  | { type: "workdir"; workdir: string }
  | { type: "user"; user: string }
  | { type: "copy"; source: string; dest: string };

/** Code that a kernel runs before the template is saved, so that what it has imported is there in every sandbox. */
export interface WarmCode {
  /** `python` (default), `javascript` or `bash`. */
  language?: string | undefined;
  code: string;
  /** Default: 60. */
  timeoutSeconds?: number | undefined;
}

/** A template in the words of `mitos.run/v1`. What was not asked for is not in it. */
export interface TemplateSpec {
  image: string;
  buildSteps?: BuildStep[];
  /** What is started when the template is built, so that every sandbox wakes with it running. */
  command?: string[];
  /** Kubernetes quantities. */
  resources?: { cpu?: string; memory?: string };
  /** The same program once more where it is waited for, or the image's own. */
  workload?: { command?: string[]; entrypoint?: true; ready?: ReadyCheck };
  network?: {
    egress?: "deny" | "allow";
    allow?: string[];
    blockNetwork?: boolean;
    allowCidrs?: string[];
    inbound?: "deny" | "allow";
    inboundCidrs?: string[];
  };
  warmKernel?: true;
  warm?: { language: string; code: string; timeoutSeconds?: number };
  /** What of the context's files no copy step sees, beside what `.dockerignore` says. */
  ignore?: string[];
}

/** The Kubernetes object that keeps sandboxes of a template ready. */
export interface TemplateObject {
  apiVersion: "mitos.run/v1";
  kind: "SandboxPool";
  metadata: { name: string };
  spec: { template: TemplateSpec };
}

/** How long a template's program is waited for. */
export interface ReadyOptions {
  /** Default: 120. */
  timeoutSeconds?: number | undefined;
}

/** Which answer of a template's program is waited for. */
export interface ReadyHttpOptions extends ReadyOptions {
  /** Default: `/`. */
  path?: string | undefined;
  /** The status. Default: 200. */
  expect?: number | undefined;
}

/** How a Dockerfile is read. */
export interface DockerfileOptions {
  /** Values for its ARG instructions, in place of their defaults. */
  buildArgs?: Readonly<Record<string, string>> | undefined;
  /** Told of every instruction that has no effect here. Default: nobody is. */
  onWarning?: ((text: string) => void) | undefined;
}

/**
 * Describes a template, step by step. Nothing is read, sent or built by it: `buildTemplate` of `@mitos/sdk/build` does that.
 *
 * ```ts
 * new Template().fromImage("python:3.12").workdir("/app").copy("app/", "/app").run("pip install -r requirements.txt").setStart("python app.py")
 * ```
 */
export class Template {
  readonly #steps: BuildStep[] = [];
  readonly #resources: { cpu?: string; memory?: string } = {};
  readonly #ignored: string[] = [];
  #image = "";
  #command: readonly string[] = [];
  #isImagesOwn = false;
  #ready: ReadyCheck | undefined;
  #network: Network | undefined;
  #warm: { language: string; code: string; timeoutSeconds?: number } | undefined;

  /**
   * The template that a Dockerfile describes. Which instructions there are: docs/guides/templates.md.
   *
   * @throws build_failed with the line and the instruction that cannot be followed as it stands
   */
  static fromDockerfile(text: string, options: DockerfileOptions = {}): Template {
    return parseDockerfile(new Template(), text, options);
  }

  /**
   * The template that a spec describes: what `toSpec` or `toTemplate` gave, also when it was written by hand.
   *
   * @throws invalid_input with the name of the member that is wrong
   */
  static fromSpec(value: unknown): Template {
    const template = new Template();
    const spec = specOf(value);
    template.fromImage(text(spec, "image"));
    const steps = list(spec, "buildSteps");
    for (const [index, step] of steps.entries()) template.#steps.push(toStep(step, index));
    // As `mitos.run/v1` has it: the older form, which counts only alone.
    if (steps.length === 0) for (const line of words(spec, "init")) template.run(line);
    const workload = isObject(spec.workload) ? spec.workload : {};
    requireMembers(workload, ["command", "entrypoint", "ready"], "workload.");
    const command = words(spec, "command");
    template.#command = command.length > 0 ? command : words(workload, "command");
    template.#isImagesOwn = workload.entrypoint === true;
    if (workload.ready !== undefined) template.#ready = toReadyCheck(workload.ready);
    const resources = isObject(spec.resources) ? spec.resources : {};
    if (resources.cpu !== undefined) template.cpu(String(resources.cpu));
    if (resources.memory !== undefined) template.memory(String(resources.memory));
    if (isObject(spec.network)) template.network(networkFromSpec(spec.network));
    if (isObject(spec.warm)) template.warm(warmFromSpec(spec.warm));
    return template.ignore(words(spec, "ignore"));
  }

  /** An image of a registry (`python:3.12-slim`), another template of the server, or `python`, `node` or `base`. */
  fromImage(image: string): this {
    this.#image = image;
    return this;
  }

  /** A line for the shell. */
  run(command: string): this {
    this.#steps.push({ type: "run", run: command });
    return this;
  }

  /** The same as `run`. */
  runCmd(command: string): this {
    return this.run(command);
  }

  /**
   * Holds for the steps after it and for the sandboxes.
   *
   * @param options - `expand`: `${NAME}` in the value stands for what that variable is before this step, the image's own variables
   *   included, as in `env("PATH", "/app/bin:${PATH}", { expand: true })`. Default: the value is taken as it is
   */
  env(name: string, value: string, { expand = false }: { expand?: boolean } = {}): this {
    this.#steps.push({ type: "env", envName: name, envValue: value, ...(expand ? { expand: true as const } : {}) });
    return this;
  }

  /** Absolute, or relative to the one before. Made when it is missing. */
  workdir(path: string): this {
    this.#steps.push({ type: "workdir", workdir: path });
    return this;
  }

  /** Who runs the steps after it and programs in the sandboxes: a name or a number, with or without `:group`. */
  user(user: string): this {
    this.#steps.push({ type: "user", user });
    return this;
  }

  /**
   * Files and folders of the context, which belong to root in the sandbox. Of a folder its contents are copied.
   *
   * @param source - below the context; `*`, `?`, `[a-z]` and `**` stand for several
   * @param dest - absolute, or relative to the `workdir`. A folder when it ends in `/`, when there is one of that name, and for several files
   *   or a folder; else the file's new name
   */
  copy(source: string, dest: string): this {
    this.#steps.push({ type: "copy", source, dest });
    return this;
  }

  /** What of the context no copy step sees, in the words of `.dockerignore` and after it: the last pattern that fits a path counts. */
  ignore(patterns: string | readonly string[]): this {
    this.#ignored.push(...(typeof patterns === "string" ? [patterns] : patterns));
    return this;
  }

  /**
   * What is started in the template.
   *
   * @param command - a string is split into words by the shell's rules for quotes and backslashes, and nothing in it is expanded; a list
   *   is taken as it is
   * @throws invalid_input for a quote that is not closed, and for an empty list
   */
  setStart(command: Command): this {
    this.#command = typeof command === "string" ? splitCommand(command) : [...requireArgv(command)];
    this.#isImagesOwn = false;
    return this;
  }

  /** Starts what the image itself says (its ENTRYPOINT and CMD) in place of a command. */
  entrypoint(): this {
    this.#command = [];
    this.#isImagesOwn = true;
    return this;
  }

  /** The template is saved when something listens on this port. */
  readyPort(port: number, { timeoutSeconds }: ReadyOptions = {}): this {
    return this.#readyWhen({ kind: "port", port }, timeoutSeconds);
  }

  /** The template is saved when this port answers a GET request as expected. */
  readyHttp(port: number, { path = "/", expect = 200, timeoutSeconds }: ReadyHttpOptions = {}): this {
    return this.#readyWhen({ port, path, expect }, timeoutSeconds);
  }

  /** The template is saved when this line for the shell ends with 0. It is run again and again until then. */
  readyCommand(command: string, { timeoutSeconds }: ReadyOptions = {}): this {
    return this.#readyWhen({ kind: "command", command }, timeoutSeconds);
  }

  #readyWhen(check: ReadyCheck, timeoutSeconds: number | undefined): this {
    this.#ready = { ...check, ...(timeoutSeconds === undefined ? {} : { timeoutSeconds }) };
    return this;
  }

  /**
   * Has a kernel run code before the template is saved: what it has imported and computed is there in every sandbox. Takes the code
   * (of `python`), a language and the code, or both with a time-out.
   */
  warm(code: string | WarmCode): this;
  warm(language: string, code: string): this;
  warm(first: string | WarmCode, second?: string): this {
    const asked: WarmCode = typeof first !== "string" ? first : second === undefined ? { code: first } : { language: first, code: second };
    const { language = "python", code, timeoutSeconds } = asked;
    this.#warm = { language, code, ...(timeoutSeconds === undefined ? {} : { timeoutSeconds }) };
    return this;
  }

  /** What its steps and its sandboxes may reach. Default: nothing. */
  network(network: Network): this {
    this.#network = { ...network };
    return this;
  }

  /** A Kubernetes quantity: `2`, `500m`. */
  cpu(quantity: string): this {
    this.#resources.cpu = quantity;
    return this;
  }

  /** A Kubernetes quantity: `1Gi`. */
  memory(quantity: string): this {
    this.#resources.memory = quantity;
    return this;
  }

  /** @throws invalid_input without an image, or where something is waited for that nothing starts */
  toSpec(): TemplateSpec {
    const { cpu, memory } = this.#resources;
    if (!this.#image) {
      throw new AgentRunError("the template has no image", {
        code: "invalid_input",
        cause: "a template begins with the image that it is built from",
        remediation: "Call fromImage first, for example fromImage('python:3.12').",
      });
    }
    return {
      image: this.#image,
      ...(this.#steps.length > 0 ? { buildSteps: this.#steps.map((step) => ({ ...step })) } : {}),
      ...(this.#command.length > 0 ? { command: [...this.#command] } : {}),
      ...(cpu || memory ? { resources: { ...(cpu ? { cpu } : {}), ...(memory ? { memory } : {}) } } : {}),
      ...this.#workloadSpec(),
      ...(this.#network ? { network: networkToSpec(this.#network) } : {}),
      ...(this.#warm ? { warmKernel: true as const, warm: { ...this.#warm } } : {}),
      ...(this.#ignored.length > 0 ? { ignore: [...this.#ignored] } : {}),
    };
  }

  #workloadSpec(): Pick<TemplateSpec, "workload"> {
    if (this.#isImagesOwn) return { workload: { entrypoint: true, ...(this.#ready ? { ready: { ...this.#ready } } : {}) } };
    if (!this.#ready) return {};
    if (this.#command.length > 0) return { workload: { command: [...this.#command], ready: { ...this.#ready } } };
    throw new AgentRunError("the template waits for a program that nothing starts", {
      code: "invalid_input",
      cause: "it says when its program is ready, and names no program",
      remediation: "Name it: CMD in a Dockerfile, setStart in a program, or entrypoint() for the image's own.",
    });
  }

  /** @throws invalid_input without an image */
  toTemplate(name: string): TemplateObject {
    return { apiVersion: "mitos.run/v1", kind: "SandboxPool", metadata: { name }, spec: { template: this.toSpec() } };
  }
}

function networkToSpec({ block, egress, allowDomains, allowCidrs, inbound, inboundCidrs }: Network): NonNullable<TemplateSpec["network"]> {
  return {
    ...(block ? { blockNetwork: true } : {}),
    ...(egress ? { egress } : {}),
    ...(allowDomains?.length ? { allow: [...allowDomains] } : {}),
    ...(allowCidrs?.length ? { allowCidrs: [...allowCidrs] } : {}),
    ...(inbound ? { inbound } : {}),
    ...(inboundCidrs?.length ? { inboundCidrs: [...inboundCidrs] } : {}),
  };
}

/** The other way round. What is not a rule is left for the server to refuse. */
export function networkFromSpec(spec: Record<string, unknown>): Network {
  const { blockNetwork, egress, inbound } = spec;
  return {
    ...(blockNetwork === true ? { block: true } : {}),
    ...(egress === undefined ? {} : { egress: egress as NonNullable<Network["egress"]> }),
    ...(spec.allow === undefined ? {} : { allowDomains: words(spec, "allow") }),
    ...(spec.allowCidrs === undefined ? {} : { allowCidrs: words(spec, "allowCidrs") }),
    ...(inbound === undefined ? {} : { inbound: inbound as NonNullable<Network["inbound"]> }),
    ...(spec.inboundCidrs === undefined ? {} : { inboundCidrs: words(spec, "inboundCidrs") }),
  };
}

function specOf(value: unknown): Record<string, unknown> {
  const spec = isObject(value) && isObject(value.spec) ? (isObject(value.spec.template) ? value.spec.template : value.spec) : value;
  if (!isObject(spec)) throw wrongSpec("it is not an object with an `image`");
  requireMembers(spec, ["image", "init", "buildSteps", "command", "resources", "workload", "network", "warmKernel", "warm", "ignore"], "");
  return spec;
}

function requireMembers(of: Record<string, unknown>, known: readonly string[], where: string): void {
  const unknown = Object.keys(of).find((name) => !known.includes(name));
  if (unknown !== undefined) throw wrongSpec(`${where}${unknown} is not a member of a template that is built here`);
}

function toStep(step: unknown, index: number): BuildStep {
  const where = `buildSteps[${index}]`;
  if (!isObject(step)) throw wrongSpec(`${where} is not an object`);
  switch (step.type) {
    case "run":
      return { type: "run", run: text(step, "run", where) };
    case "env":
      return {
        type: "env",
        envName: text(step, "envName", where),
        envValue: text(step, "envValue", where),
        ...(step.expand === true ? { expand: true as const } : {}),
      };
    case "workdir":
      return { type: "workdir", workdir: text(step, "workdir", where) };
    case "user":
      return { type: "user", user: text(step, "user", where) };
    case "copy":
      return { type: "copy", source: text(step, "source", where), dest: text(step, "dest", where) };
    default:
      throw wrongSpec(`${where}.type is ${JSON.stringify(step.type)}, not run, env, workdir, user or copy`);
  }
}

function toReadyCheck(value: unknown): ReadyCheck {
  const check = isObject(value) ? value : {};
  const timeout = typeof check.timeoutSeconds === "number" ? { timeoutSeconds: check.timeoutSeconds } : {};
  if (check.kind === "command") return { kind: "command", command: text(check, "command", "workload.ready"), ...timeout };
  if (typeof check.port !== "number") throw wrongSpec("workload.ready.port is not a number");
  if (check.kind === "port") return { kind: "port", port: check.port, ...timeout };
  if (check.kind !== undefined && check.kind !== "http") throw wrongSpec("workload.ready.kind is not http, port or command");
  return {
    port: check.port,
    ...(typeof check.path === "string" ? { path: check.path } : {}),
    ...(typeof check.expect === "number" ? { expect: check.expect } : {}),
    ...timeout,
  };
}

function warmFromSpec(warm: Record<string, unknown>): WarmCode {
  return {
    ...(warm.language === undefined ? {} : { language: text(warm, "language", "warm") }),
    code: text(warm, "code", "warm"),
    ...(typeof warm.timeoutSeconds === "number" ? { timeoutSeconds: warm.timeoutSeconds } : {}),
  };
}

function text(of: Record<string, unknown>, member: string, where?: string): string {
  const value = of[member];
  if (typeof value === "string") return value;
  throw wrongSpec(`${where ? `${where}.` : ""}${member} is not a text`);
}

function list(of: Record<string, unknown>, member: string): unknown[] {
  const value = of[member] ?? [];
  if (Array.isArray(value)) return value;
  throw wrongSpec(`${member} is not a list`);
}

function words(of: Record<string, unknown>, member: string): string[] {
  return list(of, member).map((word) => {
    if (typeof word === "string") return word;
    throw wrongSpec(`${member} is not a list of texts`);
  });
}

function wrongSpec(cause: string): AgentRunError {
  return new AgentRunError("the template's spec is not valid", {
    code: "invalid_input",
    cause,
    remediation: "Write it as Template().toSpec() of the SDK gives it (docs/guides/templates.md).",
  });
}
