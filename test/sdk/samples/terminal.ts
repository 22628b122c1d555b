// A terminal: input, size, exit code, and going on with it from another program.
import { create } from "@mitos/sdk";

await using sandbox = await create("python");
let screen = "";
const pty = await sandbox.createPty((data) => (screen += new TextDecoder().decode(data)), { cols: 100, rows: 30, command: "sh" });
await pty.sendInput("stty size; name=kept\n");
while (!screen.includes("30 100")) await new Promise((resolve) => setTimeout(resolve, 10));
await pty.resize(132, 50);
pty.disconnect();

let again = "";
const other = sandbox.connectPty(pty.pid, (data) => (again += new TextDecoder().decode(data)), { offset: pty.offset });
await other.sendInput("stty size; echo [$name]; exit 7\n");
console.log(await other.wait(), again.includes("50 132"), again.includes("[kept]"));
