// Output while a program runs: by callbacks, as an iterable, and of a program that is left running.
import { create } from "@mitos/sdk";

await using sandbox = await create("python");
const text = (data: Uint8Array) => new TextDecoder().decode(data).trimEnd();

const seen = { stdout: "", stderr: "" };
await sandbox.exec("echo out; echo err >&2", {
  onStdout: (data) => (seen.stdout += text(data)),
  onStderr: (data) => (seen.stderr += text(data)),
});
console.log(seen);

for await (const event of sandbox.execStream("echo go?; until test -e go; do sleep 0.1; done; echo gone")) {
  console.log(event.type, event.type === "exit" ? event.exitCode : text(event.data));
  if (event.type === "stdout") await sandbox.files.write("/workspace/go", "");
}

const build = sandbox.execBackground("read line; echo building $line", { stdin: true });
console.log("running", build.running());
await build.writeStdin("all\n");
console.log((await build.wait()).stdout.trimEnd(), build.running());
