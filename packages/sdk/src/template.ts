import { AgentRunError } from "./errors.ts";
import { type Command, requireArgv } from "./exec.ts";
import { splitCommand } from "./split-command.ts";

/** One step of a build; they run in order. */
export type BuildStep =
  | { type: "run"; run: string }
  | { type: "env"; envName: string; envValue: string }
  | { type: "workdir"; workdir: string }
  | { type: "copy"; source: string; dest: string };

/** A template in the words of `mitos.run/v1`. What was not asked for is not in it. */
export interface TemplateSpec {
  image: string;
  buildSteps?: BuildStep[];
  /** What is started when the template is built, so that every sandbox wakes with it running. */
  command?: string[];
  /** Kubernetes quantities. */
  resources?: { cpu?: string; memory?: string };
}

/** The Kubernetes object that keeps sandboxes of a template ready. */
export interface TemplateObject {
  apiVersion: "mitos.run/v1";
  kind: "SandboxPool";
  metadata: { name: string };
  spec: { template: TemplateSpec };
}

/**
 * Describes a template, step by step. Nothing is read, sent or built by it.
 *
 * ```ts
 * new Template().fromImage("python:3.12").workdir("/app").copy("app/", "/app").run("pip install -r requirements.txt").setStart("python app.py")
 * ```
 */
export class Template {
  readonly #steps: BuildStep[] = [];
  readonly #resources: { cpu?: string; memory?: string } = {};
  #image = "";
  #command: readonly string[] = [];

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

  /** Holds for the steps after it and for the sandboxes. */
  env(name: string, value: string): this {
    this.#steps.push({ type: "env", envName: name, envValue: value });
    return this;
  }

  workdir(path: string): this {
    this.#steps.push({ type: "workdir", workdir: path });
    return this;
  }

  copy(source: string, dest: string): this {
    this.#steps.push({ type: "copy", source, dest });
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

  /** @throws invalid_input without an image */
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
    };
  }

  /** @throws invalid_input without an image */
  toTemplate(name: string): TemplateObject {
    return { apiVersion: "mitos.run/v1", kind: "SandboxPool", metadata: { name }, spec: { template: this.toSpec() } };
  }
}
