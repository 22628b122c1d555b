import { Command } from "commander";
import { connectionOf } from "../context.ts";
import { download } from "../copy/download.ts";
import { type Place, parsePlace } from "../copy/place.ts";
import { Transfer } from "../copy/transfer.ts";
import { upload } from "../copy/upload.ts";
import { UsageError } from "../exit.ts";
import { byteSize } from "../output.ts";
import { withProgress } from "../progress.ts";
import { interruptible } from "../signals.ts";

export function cpCommand(): Command {
  return new Command("cp")
    .argument("<source>", "a local path or <id>:<path>; - for standard input")
    .argument("<target>", "a local path or <id>:<path>; - for standard output")
    .addHelpText(
      "after",
      "\nFolders are copied whole. A target that is a folder, or ends in /, gets the source under its name. Paths in a sandbox begin at /workspace\nunless they are absolute. A local name with a colon is written ./like:this.",
    )
    .action(async (from: string, to: string, _options: object, command: Command) => {
      const [source, target] = requireOneSandbox(parsePlace(from), parsePlace(to));
      const { Sandbox } = await import("@mitos/sdk");
      using interrupt = interruptible();
      const { sandbox: id } = (source.kind === "sandbox" ? source : target) as Place & { kind: "sandbox" };
      const sandbox = await Sandbox.connect(id, connectionOf(command));
      const transfer = new Transfer(sandbox, interrupt.signal);
      const work =
        source.kind === "sandbox"
          ? download(transfer, source.path, target)
          : upload(transfer, source, target as Place & { kind: "sandbox" });
      await withProgress(() => `copying, ${byteSize(transfer.bytes)}`, work);
    });
}

function requireOneSandbox(source: Place, target: Place): [Place, Place] {
  const sandboxes = [source, target].filter(({ kind }) => kind === "sandbox").length;
  if (sandboxes === 1) return [source, target];
  const problem = sandboxes === 0 ? "neither the source nor the target is in a sandbox" : "the source and the target are both in a sandbox";
  throw new UsageError(
    problem,
    "Name exactly one of them as <id>:<path>; between two sandboxes, copy through `-`: mitos cp a:file - | mitos cp - b:file.",
  );
}
