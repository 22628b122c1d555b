/** What can be done inside one running sandbox, over the link to its agent. Input is checked here, before anything is sent. */

import type { DescField, MessageInitShape, MessageShape } from "@bufbuild/protobuf";
import { isId, limits, MitosError, newContextId } from "@mitos/protocol";
import { guest, sandbox as pb } from "@mitos/protocol/proto";
import type {
  Attachment,
  Context,
  ProcessEvent,
  ProcessExit,
  ProcessRow,
  ProcessStart,
  RunCodeRequest,
  Runtime,
  Tunnel,
} from "./actions.ts";
import type { CallOptions, Duplex, DuplexOptions, LinkClient } from "./link/client.ts";
import { Fifo } from "./link/fifo.ts";
import { printable } from "./link/status.ts";
import {
  checkContextId,
  checkLanguage,
  checkMode,
  checkOffset,
  checkPath,
  checkPid,
  checkPort,
  checkProcessStart,
  checkShortText,
  checkSignal,
  checkTerminalSize,
  checkTimeout,
  checkVitalsInterval,
  textBytes,
} from "./runtime-input.ts";

/** A message with this much data fits into one frame. */
const dataBytesMax = 60_000;
/** The same where the message says nothing else. */
const contentBytesMax = 65_520;
/** Of an upload that its source gives faster than the sandbox takes it. */
const sendAheadBytesMax = 524_288;
/** For calls that answer once; a fork that happens meanwhile counts too. */
const answerTimeoutMs = 120_000;
const errorTextCharactersMax = 4_096;
/** The last second that a `Date` can hold. */
const unixSecondsMax = 8_640_000_000_000n;

const { method } = guest.Agent;

export interface RuntimeHooks {
  /** A call or stream begins; the answer is called once when it is over. */
  readonly onActivity: () => () => void;
}

export function createRuntime(link: LinkClient, hooks: RuntimeHooks): Runtime {
  /** Runs what begins a call and counts it as activity until the call is over; a call that cannot be begun is over at once. */
  function begin<T>(signal: AbortSignal | undefined, call: (options: CallOptions) => T): T {
    const onEnd = hooks.onActivity();
    try {
      return call({ signal, onEnd });
    } catch (error) {
      onEnd();
      throw error;
    }
  }

  async function ask<T>(call: (options: CallOptions & { timeoutMs: number }) => Promise<T>): Promise<T> {
    const end = hooks.onActivity();
    try {
      return await call({ timeoutMs: answerTimeoutMs });
    } finally {
      end();
    }
  }

  const openExec = (first: MessageInitShape<typeof guest.ExecInputSchema>, options: ExecOptions = {}) =>
    begin(options.signal, (call) => link.duplex(method.exec, first, { isLast: isExit, ...options, ...call }));

  return {
    exec(start, signal) {
      return attachment(link, openExec({ msg: { case: "start", value: processStart(start, false) } }, { signal }));
    },

    async start(start) {
      // Its answer is one message.
      const call = openExec({ msg: { case: "start", value: processStart(start, true) } }, { isLast: () => true });
      for await (const event of processEvents(call.messages)) {
        if (event.kind === "started") return { pid: event.pid, startedUnixMs: event.startedUnixMs };
        if (event.kind === "exit") throw new MitosError("exec_failed", { cause: event.error || "the program ended before it was started" });
      }
      throw malformed("an Exec without an answer");
    },

    attach(pid, { stdoutFrom = 0, stderrFrom = 0, follow }, signal) {
      checkPid(pid);
      checkOffset(stdoutFrom, "stdout_from");
      checkOffset(stderrFrom, "stderr_from");
      const value = { pid, stdoutFrom: BigInt(stdoutFrom), stderrFrom: BigInt(stderrFrom), follow };
      const first = { msg: { case: "attach" as const, value } };
      return processEvents(openExec(first, { signal, endAtOnce: true }).messages);
    },

    async listProcesses() {
      const { processes } = await ask((options) => link.unary(method.listProcesses, {}, options));
      return processes.map(processRow);
    },

    async writeStdin(pid, data, close) {
      checkPid(pid);
      const parts = [...pieces(data)];
      if (parts.length === 0) parts.push(data);
      for (const [index, part] of parts.entries()) {
        const request = { pid, data: part, close: close && index === parts.length - 1 };
        await ask((options) => link.unary(method.writeStdin, request, options));
      }
    },

    async resizeTerminal(pid, cols, rows) {
      checkPid(pid);
      checkTerminalSize(cols, rows);
      await ask((options) => link.unary(method.resizeTerminal, { pid, size: { cols, rows } }, options));
    },

    async signalProcess(pid, signal, group) {
      checkPid(pid);
      checkSignal(signal);
      await ask((options) => link.unary(method.signalProcess, { pid, signal, group }, options));
    },

    processes: () => ask((options) => link.unary(method.processes, {}, options)),

    vitals(intervalSeconds, signal) {
      checkVitalsInterval(intervalSeconds);
      return begin(signal, (options) => link.serverStream(method.vitals, { intervalSeconds }, options));
    },

    runCode(request, signal) {
      const value = runCodeOpen(request);
      const first = { msg: { case: "open" as const, value } };
      const isLast = ({ msg }: pb.RunCodeResponse) => msg.case === "exitCode";
      return begin(signal, (options) => link.duplex(method.runCode, first, { ...options, endAtOnce: true, isLast })).messages;
    },

    async createContext({ language, cwd = "" }) {
      checkLanguage(language);
      if (cwd) checkPath(cwd, "cwd");
      return contextOf(await ask((options) => link.unary(method.createContext, { id: newContextId(), language, cwd }, options)));
    },

    async listContexts() {
      return (await ask((options) => link.unary(method.listContexts, {}, options))).contexts.map(contextOf);
    },

    async restartContext(id) {
      checkContextId(id);
      return contextOf(await ask((options) => link.unary(method.restartContext, { id }, options)));
    },

    async removeContext(id) {
      checkContextId(id);
      await ask((options) => link.unary(method.removeContext, { id }, options));
    },

    async readFile(path, { offset, length }, signal) {
      checkPath(path);
      checkOffset(offset, "offset");
      checkOffset(length, "length");
      const range = { path, offset: BigInt(offset), length: BigInt(length) };
      const messages = begin(signal, (options) => link.serverStream(method.readFile, range, { ...options, isWide: true }));
      const first = await messages.next();
      if (first.done || first.value.msg.case !== "info") {
        await messages.return?.();
        throw malformed("a file without its info");
      }
      const info = first.value.msg.value;
      try {
        checkFileInfo(info);
      } catch (error) {
        await messages.return?.();
        throw error;
      }
      return { info, data: fileData(messages, length) };
    },

    async writeFile(path, mode, data, signal) {
      checkPath(path);
      checkMode(mode);
      const first = { msg: { case: "open" as const, value: { path, mode } } };
      const call = begin(signal, (options) => link.duplex(method.writeFile, first, options));
      const { bytesWritten } = await sendAll(call, data, method.writeFile.input.field.data);
      return safeNumber(bytesWritten, "bytes_written");
    },

    list(path) {
      checkPath(path);
      return ask((options) => link.unary(method.list, { parent: path }, options));
    },

    async stat(path) {
      checkPath(path);
      const info = await ask((options) => link.unary(method.stat, { path }, options));
      checkFileInfo(info);
      return info;
    },

    async mkdir(path) {
      checkPath(path);
      await ask((options) => link.unary(method.mkdir, { path }, options));
    },

    async remove(path) {
      checkPath(path);
      await ask((options) => link.unary(method.remove, { path, recursive: true }, options));
    },

    async rename(from, to) {
      checkPath(from, "from");
      checkPath(to, "to");
      await ask((options) => link.unary(method.rename, { from, to }, options));
    },

    async setMode(path, mode) {
      checkPath(path);
      checkMode(mode);
      await ask((options) => link.unary(method.setMode, { path, mode }, options));
    },

    async makeSymlink(target, path) {
      checkPath(target, "target");
      checkPath(path);
      await ask((options) => link.unary(method.makeSymlink, { target, path }, options));
    },

    async readLink(path) {
      checkPath(path);
      return (await ask((options) => link.unary(method.readLink, { path }, options))).target;
    },

    watch(path, recursive, signal) {
      checkPath(path);
      return begin(signal, (options) => link.serverStream(method.watch, { path, recursive }, options));
    },

    archive(path, signal) {
      checkPath(path);
      const direction = pb.ArchiveRequest_Direction.DOWNLOAD;
      return begin(signal, (options) => link.serverStream(method.archive, { path, direction }, options));
    },

    async upload(dest, tar, signal) {
      checkPath(dest, "dest");
      const first = { msg: { case: "open" as const, value: { dest } } };
      const call = begin(signal, (options) => link.duplex(method.upload, first, options));
      const { bytesWritten } = await sendAll(call, tar, method.upload.input.field.chunk);
      return safeNumber(bytesWritten, "bytes_written");
    },

    async tunnel(port, signal): Promise<Tunnel> {
      checkPort(port);
      return await begin(signal, (options) => link.tunnel(port, options));
    },
  };
}

// ---------------------------------------------------------------------------------------------------- processes

type ExecOptions = Omit<DuplexOptions<guest.ExecOutput>, "onEnd">;
type ExecCall = Duplex<MessageInitShape<typeof guest.ExecInputSchema>, MessageShape<typeof guest.ExecOutputSchema>>;

function attachment(link: LinkClient, call: ExecCall): Attachment {
  let pid: number | undefined;
  let sent: Promise<void> = Promise.resolve();
  const events = processEvents(call.messages, (started) => {
    pid = started;
  });
  /** One after another, so that pieces of two writes do not mix. A write that fails does not keep later ones from failing by themselves. */
  const inTurn = (write: () => Promise<void>): Promise<void> => {
    const written = sent.then(write);
    sent = written.catch(() => undefined);
    return written;
  };
  return {
    [Symbol.asyncIterator]: () => events,
    writeStdin: (data) =>
      inTurn(async () => {
        for (const value of pieces(data)) await call.send({ msg: { case: "stdin", value } });
      }),
    closeStdin: () => inTurn(() => call.send({ msg: { case: "stdinClose", value: true } })),
    // By a call of their own once the pid is known: a program that does not read its input must still be resized and signalled.
    resize: async (cols, rows) => {
      checkTerminalSize(cols, rows);
      if (pid === undefined) await call.send({ msg: { case: "resize", value: { cols, rows } } });
      else await link.unary(method.resizeTerminal, { pid, size: { cols, rows } }, { timeoutMs: answerTimeoutMs });
    },
    signal: async (signal) => {
      checkSignal(signal);
      if (pid === undefined) await call.send({ msg: { case: "signal", value: signal } });
      else await link.unary(method.signalProcess, { pid, signal, group: true }, { timeoutMs: answerTimeoutMs });
    },
  };
}

function processStart(start: ProcessStart, detached: boolean): MessageInitShape<typeof guest.ProcessStartSchema> {
  checkProcessStart(start);
  const { pty } = start;
  return {
    argv: [...(start.argv ?? [])],
    shellCommand: start.shellCommand ?? "",
    env: Object.entries(start.env ?? {}).map(([key, value]) => ({ key, value })),
    cwd: start.cwd ?? "",
    user: start.user ?? "",
    stdin: start.stdin ?? false,
    ...(pty ? { pty: { term: pty.term ?? "", size: { cols: pty.cols, rows: pty.rows } } } : {}),
    timeoutMs: checkTimeout(start.timeoutMs),
    detached,
  };
}

const isExit = ({ msg }: guest.ExecOutput) => msg.case === "exit";

/** The events of an Exec. Leaving leaves `messages`, which before the exit is RESET. */
function processEvents(
  messages: AsyncIterableIterator<guest.ExecOutput>,
  onStarted?: (pid: number) => void,
): AsyncIterableIterator<ProcessEvent> {
  return mapped(messages, ({ msg }) => {
    switch (msg.case) {
      case "started":
        onStarted?.(msg.value.pid);
        return { kind: "started", pid: msg.value.pid, startedUnixMs: safeNumber(msg.value.startedUnixMs, "started_unix_ms") };
      case "output":
        return {
          kind: "output",
          stream: streamName(msg.value.stream),
          offset: safeNumber(msg.value.offset, "offset"),
          data: msg.value.data,
        };
      case "gap":
        return {
          kind: "gap",
          stream: streamName(msg.value.stream),
          from: safeNumber(msg.value.from, "from"),
          to: safeNumber(msg.value.to, "to"),
        };
      case "exit":
        return { kind: "exit", ...processExit(msg.value) };
      default:
        throw malformed("an empty Exec message");
    }
  });
}

function processExit(exit: guest.ProcessExit): ProcessExit {
  return {
    exitCode: exit.exitCode,
    signal: exit.signal,
    timedOut: exit.timedOut,
    execTimeMs: Number.isFinite(exit.execTimeMs) && exit.execTimeMs > 0 ? exit.execTimeMs : 0,
    error: printable(exit.error, errorTextCharactersMax),
  };
}

function processRow(row: guest.ProcessRow): ProcessRow {
  return {
    pid: row.pid,
    command: row.command,
    startedUnixMs: safeNumber(row.startedUnixMs, "started_unix_ms"),
    state: row.exit ? "exited" : "running",
    exit: row.exit ? processExit(row.exit) : null,
    stdoutBytes: safeNumber(row.stdoutBytes, "stdout_bytes"),
    stderrBytes: safeNumber(row.stderrBytes, "stderr_bytes"),
  };
}

function streamName(stream: guest.Stream): "stdout" | "stderr" {
  if (stream === guest.Stream.STDOUT) return "stdout";
  if (stream === guest.Stream.STDERR) return "stderr";
  throw malformed(`output of stream ${stream}`);
}

// ---------------------------------------------------------------------------------------------------- code and files

function runCodeOpen({ code, language, timeoutMs, context = "" }: RunCodeRequest): MessageInitShape<typeof guest.RunCodeOpenSchema> {
  if (textBytesOfCode(code) > limits.messageBytesMax / 2) throw new MitosError("body_too_large", { cause: "the code" });
  checkShortText(language, "language");
  if (context) checkContextId(context);
  return { code, language, timeoutMs: checkTimeout(timeoutMs), context };
}

/** @throws unavailable for what the guest may not claim */
function contextOf({ id, language, cwd, isDefault }: guest.Context): Context {
  if (!isId(id)) throw malformed("a context without a usable id");
  return { id, language: printable(language), cwd: printable(cwd, limits.pathBytesMax), isDefault };
}

/** Code may contain NUL: that is for the interpreter to refuse. */
function textBytesOfCode(code: string): number {
  return textBytes(code.replaceAll("\0", " "), "the code");
}

/** @param length - 0 = to the end; else a guest that sends more is not believed. */
function fileData(messages: AsyncIterableIterator<guest.ReadFileOutput>, length: number): AsyncIterableIterator<Uint8Array> {
  let received = 0;
  return mapped(messages, ({ msg }) => {
    if (msg.case !== "data") throw malformed("a part of a file without data");
    received += msg.value.byteLength;
    if (length > 0 && received > length) throw malformed("more of a file than was asked for");
    return msg.value;
  });
}

/** Its numbers become headers. @throws unavailable */
function checkFileInfo({ size, modifiedAtUnix }: pb.FileInfo): void {
  safeNumber(size, "size");
  if (modifiedAtUnix < -unixSecondsMax || modifiedAtUnix > unixSecondsMax) throw malformed("modified_at_unix out of range");
}

/** Sends everything in pieces, as fast as the sandbox takes them, and gives the one reply. A source that fails resets the call. */
async function sendAll<Input, Output>(call: Duplex<Input, Output>, data: AsyncIterable<Uint8Array>, field: DescField): Promise<Output> {
  const sending = new Fifo<{ readonly bytes: number; readonly sent: Promise<void> }>();
  let sendingBytes = 0;
  let failure: { readonly reason: unknown } | undefined;
  try {
    for await (const chunk of data) {
      for (const part of pieces(chunk, contentBytesMax)) {
        const sent = call.sendBytes(field, part);
        sent.catch((reason: unknown) => {
          failure ??= { reason };
        });
        sending.push({ bytes: part.byteLength, sent });
        sendingBytes += part.byteLength;
        while (sendingBytes > sendAheadBytesMax) {
          const oldest = sending.shift();
          await oldest?.sent;
          sendingBytes -= oldest?.bytes ?? 0;
        }
        if (failure) throw failure.reason;
      }
    }
    call.end();
    const reply = await call.messages.next();
    if (reply.done) throw malformed("no reply after the last byte");
    if (!(await call.messages.next()).done) throw malformed("two replies");
    return reply.value;
  } finally {
    call.abort();
  }
}

/** Equal pieces that each fit into one frame; none for no data. */
function* pieces(data: Uint8Array, bytesMax = dataBytesMax): Generator<Uint8Array> {
  const count = Math.ceil(data.byteLength / bytesMax);
  const size = Math.ceil(data.byteLength / count);
  for (let index = 0; index < count; index += 1) yield data.subarray(index * size, (index + 1) * size);
}

// ---------------------------------------------------------------------------------------------------- helpers

/** Like a generator over `source`, except that `return` reaches it at once, also while a `next` is waiting. */
function mapped<From, To>(source: AsyncIterableIterator<From>, map: (value: From) => To): AsyncIterableIterator<To> {
  return {
    next: async () => {
      const result = await source.next();
      if (result.done) return { done: true, value: undefined };
      try {
        return { done: false, value: map(result.value) };
      } catch (error) {
        await source.return?.();
        throw error;
      }
    },
    return: async () => {
      await source.return?.();
      return { done: true, value: undefined };
    },
    [Symbol.asyncIterator]() {
      return this;
    },
  };
}

/** @throws unavailable for what the guest may not claim */
function safeNumber(value: bigint, field: string): number {
  if (value < 0n || value > BigInt(Number.MAX_SAFE_INTEGER)) throw malformed(`${field} out of range`);
  return Number(value);
}

/** The sandbox's fault and not the server's, so not `internal`. */
function malformed(what: string): MitosError {
  return new MitosError("unavailable", { cause: `the sandbox's agent sent ${what}` });
}
