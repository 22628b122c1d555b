import type { ReadStream, WriteStream } from "node:tty";
import type { Sandbox } from "@mitos/sdk";

export interface TerminalEnd {
  readonly exitCode: number;
  /** Why the connection ended before the program did. */
  readonly failure: unknown;
}

/**
 * Joins our terminal with a new one in the sandbox until the program on it ends. Ours gets every key (raw mode) and is put back
 * whatever happens: also when this process is told to end.
 */
export async function attachTerminal(sandbox: Sandbox, input: ReadStream, output: WriteStream): Promise<TerminalEnd> {
  const restore = () => input.setRawMode(false);
  const pty = await sandbox.createPty((data) => output.write(data), {
    cols: output.columns,
    rows: output.rows,
    term: process.env.TERM,
  });
  const resize = () => void pty.resize(output.columns, output.rows).catch(() => undefined);
  const send = (data: Buffer) => void pty.sendInput(data).catch(() => undefined); // the end of the program tells more
  const hangUp = () => pty.disconnect();
  const signals = ["SIGTERM", "SIGHUP", "SIGINT"] as const;
  process.once("exit", restore);
  for (const signal of signals) process.on(signal, hangUp);
  output.on("resize", resize);
  input.on("data", send);
  input.setRawMode(true);
  input.resume();
  try {
    const exitCode = await pty.wait();
    return { exitCode, failure: await pty.failure() };
  } finally {
    restore();
    input.pause();
    input.off("data", send);
    output.off("resize", resize);
    for (const signal of signals) process.off(signal, hangUp);
    process.off("exit", restore);
  }
}
