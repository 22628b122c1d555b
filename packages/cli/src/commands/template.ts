import { Command } from "commander";
import { connectionOf } from "../context.ts";
import { age, isJson, type OutputOptions, outputFlags, print, printJson, printTable } from "../output.ts";

export function templateCommand(): Command {
  return new Command("template").addCommand(listCommand()).addCommand(removeCommand());
}

function listCommand(): Command {
  const command = new Command("ls").description("list the templates of the server");
  for (const flag of outputFlags()) command.addOption(flag);
  return command.action(async (options: OutputOptions) => {
    const { SandboxServer } = await import("@mitos/sdk");
    const templates = await SandboxServer.fromAuth(connectionOf(command)).listTemplates();
    if (isJson(options)) printJson({ templates });
    else if (templates.length === 0) print("No templates found.");
    else {
      printTable(
        ["NAME", "READY", "BUILT-IN", "AGE"],
        templates.map(({ id, ready, creationTimeMs, createdAt }) => [
          id,
          ready ? "yes" : "no",
          creationTimeMs > 0 ? `${Math.round(creationTimeMs)} ms` : undefined,
          Number.isNaN(Date.parse(createdAt)) ? undefined : age((Date.now() - Date.parse(createdAt)) / 1000),
        ]),
      );
    }
  });
}

function removeCommand(): Command {
  return new Command("rm")
    .description("delete a template; sandboxes that were made from it run on")
    .argument("<name>", "the template")
    .action(async (name: string, _options: object, command: Command) => {
      const { HttpClient } = await import("@mitos/sdk");
      await HttpClient.fromAuth(connectionOf(command)).del(`/v1/templates/${encodeURIComponent(name)}`);
      print(`deleted ${name}`);
    });
}
