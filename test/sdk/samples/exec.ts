// exec: a program's result, its time-out, and a list of arguments.
import { create, ExecutionDeadlineError } from "@mitos/sdk";

await using sandbox = await create("python");
console.log((await sandbox.exec("python -c 'print(2 + 2)'")).stdout);
const { exitCode, stdout, stderr, execTimeMs } = await sandbox.exec("echo out; echo err >&2; exit 3", { timeoutSeconds: 30 });
console.log(exitCode, JSON.stringify(stdout), JSON.stringify(stderr), execTimeMs !== undefined);
await sandbox.files.write("/workspace/task.py", "import sys; print(sys.argv)");
console.log((await sandbox.exec(["python", "task.py", "two words", "$HOME"])).stdout);
try {
  await sandbox.exec("sleep 30", { timeoutSeconds: 1 });
} catch (error) {
  if (!(error instanceof ExecutionDeadlineError)) throw error;
  console.log(error.code, error.context.timeout_s);
}
