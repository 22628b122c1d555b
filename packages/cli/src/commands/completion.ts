import { Argument, Command } from "commander";
import { completionScript, type Shell, shells } from "../completion.ts";

export function completionCommand(): Command {
  return new Command("completion")
    .addArgument(new Argument("<shell>", "for which shell").choices(shells))
    .addHelpText(
      "after",
      '\nbash: eval "$(mitos completion bash)" in ~/.bashrc\nzsh:  mitos completion zsh > a folder of $fpath, as _mitos\nfish: mitos completion fish > ~/.config/fish/completions/mitos.fish',
    )
    .action(async (shell: Shell) => {
      const { buildProgram } = await import("../program.ts");
      process.stdout.write(completionScript(shell, await buildProgram("all")));
    });
}
