import { CodeLanguage, Daytona, DaytonaError, DaytonaNotFoundError, type Sandbox, SandboxState } from "@daytona/sdk";

/**
 * A program as users of Daytona's TypeScript SDK write it, without a word of ours in it. It is compiled against Daytona's types with all of
 * this tree, compiled against ours by the `tsconfig.json` beside it, and run against ours by `../daytona.test.ts`.
 */
export async function usage(apiUrl: string): Promise<Record<string, unknown>> {
  const daytona = new Daytona({ apiKey: "unused", apiUrl, target: "eu" });
  const sandbox = await daytona.create(
    { language: CodeLanguage.PYTHON, envVars: { GREETING: "hello" }, labels: { team: "blue" }, ttlMinutes: 30 },
    { timeout: 90 },
  );
  const found: Record<string, unknown> = { running: sandbox.state === SandboxState.STARTED, labels: sandbox.labels.team };
  try {
    const said = await sandbox.process.executeCommand('echo "$GREETING, $NAME"; pwd', "/tmp", { NAME: "world" }, 10);
    found.said = [said.exitCode, said.result, said.artifacts?.stdout];
    found.failed = (await sandbox.process.executeCommand("exit 7")).exitCode;

    const code = await sandbox.process.codeRun("print(sum(range(5)))");
    found.code = [code.exitCode, code.result];
    found.arguments = (
      await sandbox.process.codeRun("import sys, os; print(sys.argv[1], os.environ['K'])", { argv: ["a"], env: { K: "v" } })
    ).result;

    await sandbox.process.createSession("build");
    await sandbox.process.executeSessionCommand("build", { command: "cd /tmp && STEP=one" });
    const step = await sandbox.process.executeSessionCommand("build", { command: 'echo "$STEP in $PWD"', runAsync: false }, 30);
    found.session = [step.exitCode, step.stdout, (await sandbox.process.getSessionCommandLogs("build", step.cmdId)).output];
    await sandbox.process.deleteSession("build");

    await sandbox.fs.createFolder("project/data", "755");
    await sandbox.fs.uploadFile(Buffer.from('{"a": 1}'), "project/data/config.json");
    const config: Buffer = await sandbox.fs.downloadFile("project/data/config.json");
    found.config = JSON.parse(config.toString("utf8"));
    found.files = (await sandbox.fs.listFiles("project", { depth: 2 })).map((file) => `${file.permissions} ${file.path}`).sort();
    const details = await sandbox.fs.getFileDetails("project/data/config.json");
    found.details = [details.name, details.isDir, details.size, details.mode];
    await sandbox.fs.deleteFile("project", true);

    const { url, token } = await sandbox.getPreviewLink(3000);
    found.preview = [new URL(url).protocol, token.length > 0];

    const child: Sandbox = await sandbox.fork({ name: "the-child" });
    found.child = [child.id, (await child.process.executeCommand("echo $GREETING")).result];
    await daytona.delete(child);

    await sandbox.stop();
    found.stopped = (await daytona.get(sandbox.id)).state === SandboxState.STOPPED;
    await daytona.start(sandbox);
    found.started = (await sandbox.process.executeCommand("echo back")).result;

    const listed: string[] = [];
    for await (const each of daytona.list({ labels: { team: "blue" } })) listed.push(each.id);
    found.listed = listed.length === 1 && listed[0] === sandbox.id;
  } finally {
    await sandbox.delete();
  }
  try {
    await daytona.get("nobody");
  } catch (error) {
    found.missing = error instanceof DaytonaNotFoundError && error instanceof DaytonaError && error.statusCode;
  }
  return found;
}
