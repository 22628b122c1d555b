// Checked as a consumer's code, against the declarations of the package: what the SDK gives has these types, with nothing but the language
// and the web's own.
import {
  AgentRunError,
  type BuildStep,
  type CreateOptions,
  create,
  defaultPoolName,
  type ExecEvent,
  type Execution,
  type FileInfo,
  NotFoundError,
  type ProcessEvent,
  type Pty,
  type Result,
  Sandbox,
  SandboxServer,
  type ServerSandbox,
  Template,
  type TemplateInfo,
  type TemplateSpec,
} from "@mitos/sdk";

export const options: CreateOptions = {
  template: "python",
  env: { A: "1" },
  network: { egress: "deny", allowDomains: ["pypi.org:443"] },
  resources: { vcpuCount: 2, memSizeMiB: 1024 },
  baseUrl: "http://127.0.0.1:8080",
};

// @ts-expect-error a number is no name of a template
export const wrong: CreateOptions = { template: 7 };

export async function use(): Promise<void> {
  await using sandbox: Sandbox = await create("python");
  const { exitCode, stdout }: { exitCode: number; stdout: string } = await sandbox.exec(["ls", "-l"], {
    onStdout: (data: Uint8Array) => data.length,
  });
  for await (const event of sandbox.execStream("ls")) {
    const known: ExecEvent = event;
    const shown: number | Uint8Array = known.type === "exit" ? known.exitCode : known.data;
    void shown;
  }
  const background = sandbox.execBackground("sleep 1", { stdin: true });
  for await (const event of background.output({ stdoutFrom: 1 })) {
    const known: ProcessEvent = event;
    void known;
  }
  const bytes: Uint8Array<ArrayBuffer> = await sandbox.files.readBytes("/a");
  const stream: ReadableStream<Uint8Array> = await sandbox.files.readStream("/a", { offset: 1 });
  await sandbox.files.write("/b", stream);
  await sandbox.files.write("/b", new Blob([bytes]));
  const files: FileInfo[] = await sandbox.files.list();
  const execution: Execution = await sandbox.runCode("1", { onResult: (result: Result) => result.png?.length });
  const picture: string | undefined = execution.results[0]?.png ?? execution.results[0]?.pdf;
  const text: string | null = execution.text;
  const pty: Pty = await sandbox.createPty((data) => data.byteLength, { cols: 80 });
  const code: number = await pty.wait();
  const children: Sandbox[] = await sandbox.fork(2);
  const pausedMs: number | undefined = (await sandbox.fork({ count: 2 })).pausedMs;
  const rows: ServerSandbox[] = await Sandbox.list();
  const templates: TemplateInfo[] = await new SandboxServer().listTemplates();
  void [exitCode, stdout, files, picture, text, code, children, pausedMs, rows, templates];
}

export function describe(error: unknown): string {
  if (error instanceof NotFoundError) return String(error.status satisfies number | undefined);
  if (error instanceof AgentRunError) return `${error.code} ${error.errorCause} ${error.remediation} ${Object.keys(error.context).length}`;
  return "";
}

export const spec: TemplateSpec = new Template().fromImage("python:3.12").run("pip list").setStart(["python", "app.py"]).cpu("2").toSpec();
export const steps: BuildStep[] | undefined = spec.buildSteps;
export const pool: string = defaultPoolName(spec.image);
