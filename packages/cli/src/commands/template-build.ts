import { access, readFile } from "node:fs/promises";
import type { Template, TemplateInfo } from "@mitos/sdk";
import { Command, Option } from "commander";
import { following } from "../building/following.ts";
import { printEvent } from "../building/report.ts";
import { duration } from "../building/text.ts";
import { buildArgument, connectionOf, templateName, wholeNumber } from "../context.ts";
import { CommandError, UsageError } from "../exit.ts";
import { byteSize, print } from "../output.ts";

interface BuildOptions {
  name: string;
  dockerfile?: string;
  spec?: string;
  context: string;
  buildArg?: Record<string, string>;
  allow: string[];
  egress?: "allow" | "deny";
  cpu?: string;
  memory?: string;
  readyPort?: number;
  readyCommand?: string;
  cache: boolean;
  pull?: boolean;
  json?: boolean;
}

export function buildCommand(): Command {
  return new Command("build")
    .description("build a template from a Dockerfile or a spec, and the files of a folder")
    .requiredOption("--name <name>", "the template; one that has the name already is replaced when this one is ready")
    .option("--dockerfile <file>", "a Dockerfile; which instructions it may have: docs/guides/templates.md")
    .option("--spec <file>", "a template's spec as JSON or YAML, as Template().toSpec() of the SDK gives it")
    .option("--context <dir>", "the folder that COPY reads; a .dockerignore in it counts", ".")
    .option("--build-arg <NAME=value>", "a value for an ARG of the Dockerfile; may be given several times", buildArgument)
    .option(
      "--allow <name>",
      "what its steps and its sandboxes may reach, such as pypi.org:443, in place of what a spec says; may be given several times",
      (name: string, sofar: string[]) => [...sofar, name],
      [],
    )
    .addOption(new Option("--egress <rule>", "allow: every public address (default: nothing but --allow)").choices(["allow", "deny"]))
    .option("--cpu <quantity>", "processors of its sandboxes, such as 2, in place of what a spec says")
    .option("--memory <quantity>", "memory of its sandboxes, such as 1Gi or 512Mi; what they write counts as memory")
    .option("--ready-port <port>", "save the template when its program listens on this port", wholeNumber("--ready-port", 1, 65_535))
    .addOption(new Option("--ready-command <line>", "save it when this line ends with 0").conflicts("readyPort"))
    .option("--no-cache", "run every step again")
    .option("--pull", "ask the registry again what the image's tag means")
    .option("--json", "print the events of the build, one JSON object a line")
    .action(async (options: BuildOptions, command: Command) => {
      requireOneFile(options);
      await templateName(options.name);
      const started = performance.now();
      let cached = 0;
      let steps = 0;
      const { name, json = false } = options;
      const after = "Build it again when you like: steps that were done are stored, and go on from there.";
      const info = await following(`the build of ${name}`, json, after, async ({ signal, onEvent }) => {
        const onWarning = (text: string) => onEvent({ kind: "warning", atMs: Date.now(), text });
        const template = await readTemplate(options, onWarning);
        const { buildTemplate } = await import("@mitos/sdk/build");
        const ignoreFile = options.dockerfile && (await ignoreFileOf(options.dockerfile));
        return await buildTemplate(name, template, {
          ...connectionOf(command),
          context: options.context,
          ignoreFile,
          noCache: !options.cache,
          pull: options.pull,
          signal,
          onEvent(event) {
            if (event.kind === "step") steps = event.count;
            if (event.kind === "step" && event.state === "cached") cached++;
            onEvent(event);
          },
        });
      });
      if (json) printEvent({ kind: "done", atMs: Date.now(), template: info });
      else print(summary(info, cached, steps, performance.now() - started));
    });
}

function requireOneFile({ dockerfile, spec, buildArg }: BuildOptions): void {
  if ((dockerfile === undefined) === (spec === undefined)) {
    const problem = dockerfile === undefined ? "neither a Dockerfile nor a spec is named" : "a Dockerfile and a spec are named";
    throw new UsageError(problem, "Give exactly one of --dockerfile and --spec.");
  }
  if (spec !== undefined && buildArg) throw new UsageError("--build-arg is for Dockerfiles", "Write the value into the spec.");
}

async function readTemplate(options: BuildOptions, onWarning: (text: string) => void): Promise<Template> {
  const { allow, egress, cpu, memory, readyPort, readyCommand } = options;
  const template = await readFileOf(options, onWarning);
  if (allow.length > 0 || egress !== undefined) template.network({ ...(egress ? { egress } : {}), allowDomains: allow });
  if (cpu !== undefined) template.cpu(cpu);
  if (memory !== undefined) template.memory(memory);
  if (readyPort !== undefined) template.readyPort(readyPort);
  if (readyCommand !== undefined) template.readyCommand(readyCommand);
  return template;
}

async function readFileOf({ dockerfile, spec, buildArg }: BuildOptions, onWarning: (text: string) => void): Promise<Template> {
  const { Template } = await import("@mitos/sdk");
  const text = await readText(dockerfile ?? spec!);
  if (dockerfile !== undefined) return Template.fromDockerfile(text, { buildArgs: buildArg, onWarning });
  const { parse } = await import("yaml");
  try {
    return Template.fromSpec(parse(text));
  } catch (error) {
    if (!(error instanceof Error) || error.name !== "YAMLParseError") throw error;
    throw new CommandError(`${spec} cannot be read`, error.message.split("\n", 1)[0]!.replace(/:$/, ""), "Write it as JSON or YAML.");
  }
}

async function readText(file: string): Promise<string> {
  try {
    return await readFile(file, "utf8");
  } catch (error) {
    throw new CommandError(`${file} cannot be read`, (error as Error).message, "Check the path.");
  }
}

/** One that belongs to this Dockerfile goes before the context's. */
async function ignoreFileOf(dockerfile: string): Promise<string | undefined> {
  const file = `${dockerfile}.dockerignore`;
  return access(file).then(
    () => file,
    () => undefined,
  );
}

function summary({ id, source, snapshotBytes }: TemplateInfo, cached: number, steps: number, ms: number): string {
  const parts = [
    ...(steps > 0 ? [`${cached} of ${steps} steps cached`] : []),
    ...(source && source.layers > 0 ? [`${source.layers} layers, ${byteSize(source.rootBytes)}`] : []),
    ...(snapshotBytes ? [`snapshot ${byteSize(snapshotBytes)}`] : []),
  ];
  return `Template "${id}" ready in ${duration(ms)}${parts.map((part) => `; ${part}`).join("")}`;
}
