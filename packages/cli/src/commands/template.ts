import type { NameMeaning, SandboxServer, TemplateInfo } from "@mitos/sdk";
import { Command } from "commander";
import { following } from "../building/following.ts";
import { lineReport, printEvent } from "../building/report.ts";
import { connectionOf, imageReference, templateName } from "../context.ts";
import { age, byteSize, isJson, type OutputOptions, outputFlags, print, printFailure, printJson, printTable } from "../output.ts";
import { interruptible } from "../signals.ts";
import { buildCommand } from "./template-build.ts";

export function templateCommand(): Command {
  return new Command("template")
    .addCommand(buildCommand())
    .addCommand(pushCommand())
    .addCommand(pullCommand())
    .addCommand(listCommand())
    .addCommand(logsCommand())
    .addCommand(removeCommand());
}

const jsonFlag = ["--json", "print the events, one JSON object a line"] as const;

function pushCommand(): Command {
  return new Command("push")
    .description("put a template's files into a registry, as an image")
    .argument("<name>", "the template")
    .argument("<reference>", "what the image is called: registry.example/team/tool:1")
    .option(...jsonFlag)
    .action(async (name: string, reference: string, { json = false }: { json?: boolean }, command: Command) => {
      await templateName(name);
      await imageReference(reference);
      const server = await connect(command);
      const after = "Push it again when you like: what the registry has already is not sent again.";
      const pushed = await following(`the push of ${name}`, json, after, (progress) => server.pushTemplate(name, reference, progress));
      if (json) printEvent({ kind: "done", atMs: Date.now(), ...pushed });
      else print(`pushed ${name} to ${pushed.reference} (${pushed.digest})`);
    });
}

function pullCommand(): Command {
  return new Command("pull")
    .description("have the server download an image before the first sandbox needs it")
    .argument("<reference>", "the image, such as python:3.12-slim")
    .option(...jsonFlag)
    .action(async (reference: string, { json = false }: { json?: boolean }, command: Command) => {
      await imageReference(reference);
      const server = await connect(command);
      const after = "Pull it again when you like: layers that are there are not downloaded again.";
      // Whoever pulls by hand wants to know what the tag means now.
      const image = await following(`the pull of ${reference}`, json, after, (progress) =>
        server.pullImage(reference, { pull: true, ...progress }),
      );
      if (json) printEvent({ kind: "done", atMs: Date.now(), image });
      else print(`pulled ${image.reference} (${image.digest}): ${image.layers} layers, ${byteSize(image.rootBytes)}`);
    });
}

function listCommand(): Command {
  const command = new Command("ls").description("list the templates of the server, and what the short names mean on it");
  for (const flag of outputFlags()) command.addOption(flag);
  return command.action(async (options: OutputOptions) => {
    const server = await connect(command);
    const [templates, names] = await Promise.all([server.listTemplates(), meanings(server)]);
    if (isJson(options)) printJson({ templates, names });
    else {
      if (templates.length === 0) print("No templates found.");
      else printTable(["NAME", "READY", "SOURCE", "IMAGE", "SIZE", "AGE"], templates.map(toCells));
      if (names.length === 0) return;
      print("");
      printTable(
        ["NAME", "MEANS"],
        names.map(({ name, means, reference }) => [name, meaning(means, reference)]),
      );
    }
  });
}

function toCells({ id, ready, source, snapshotBytes, createdAt }: TemplateInfo): (string | undefined)[] {
  const size = (snapshotBytes ?? 0) + (source?.rootBytes ?? 0);
  return [
    id,
    ready ? "yes" : "no",
    source?.kind,
    source?.reference,
    size > 0 ? byteSize(size) : undefined,
    Number.isNaN(Date.parse(createdAt)) ? undefined : age((Date.now() - Date.parse(createdAt)) / 1000),
  ];
}

/** None where an older server does not tell. */
async function meanings(server: SandboxServer): Promise<NameMeaning[]> {
  const asked = ["python", "node", "base"].map((name) => server.meaningOf(name).catch(() => undefined));
  return (await Promise.all(asked)).filter((answer) => answer !== undefined);
}

function meaning(means: NameMeaning["means"], reference: string): string {
  if (means === "image") return `image ${reference}`;
  if (means === "host") return "the server's own root";
  return means === "template" ? "this template" : "nothing";
}

function logsCommand(): Command {
  return new Command("logs")
    .description("show what happened while a template was last built")
    .argument("<name>", "the template")
    .option("-f, --follow", "go on until the build is over")
    .option(...jsonFlag)
    .action(async (name: string, { follow = false, json = false }: { follow?: boolean; json?: boolean }, command: Command) => {
      await templateName(name);
      const server = await connect(command);
      using interrupt = interruptible();
      using report = json ? undefined : lineReport();
      for await (const event of server.templateEvents(name, { follow, signal: interrupt.signal })) {
        if (json) printEvent(event);
        else report!.show(event);
        if (event.kind === "failed" && !json) printFailure({ ...event, nextStep: event.remediation, exitCode: 0 });
      }
    });
}

function removeCommand(): Command {
  return new Command("rm")
    .description("delete a template; sandboxes that were made from it run on")
    .argument("<name>", "the template")
    .action(async (name: string, _options: object, command: Command) => {
      await templateName(name);
      await (await connect(command)).deleteTemplate(name);
      print(`deleted ${name}`);
    });
}

async function connect(command: Command): Promise<SandboxServer> {
  const { SandboxServer } = await import("@mitos/sdk");
  return SandboxServer.fromAuth(connectionOf(command));
}
