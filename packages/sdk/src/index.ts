export type { KeyJson, NewKeyJson } from "@mitos/protocol";
export { type Connection, DEFAULT_BASE_URL, toBaseUrl, validSandboxId } from "./config.ts";
export { ConnectClient, type Message } from "./connect.ts";
export type { CodeContext, ContextOptions, ContextRef } from "./contexts.ts";
export { type CreateOptions, create } from "./create.ts";
export {
  AgentRunError,
  type AgentRunErrorOptions,
  EXEC_TIMEOUT_EXIT_CODE,
  ExecutionDeadlineError,
  errorForCode,
  IdleTimeoutError,
  MAX_EXEC_TIMEOUT_SECONDS,
  NotFoundError,
  RateLimitedError,
  RequestCanceledError,
  redact,
  TimeoutTooLargeError,
  UnauthorizedError,
  validateTimeout,
} from "./errors.ts";
export type { Command, ExecEvent, ExecOptions, ExecResult, OutputCallbacks } from "./exec.ts";
export {
  type FileContent,
  type FileEvent,
  type FileInfo,
  type FileToWrite,
  type ReadStreamOptions,
  SandboxFiles,
  type WriteOptions,
} from "./files.ts";
export { HttpClient, type RequestBody, type RequestOptions } from "./http.ts";
export { defaultPoolName } from "./pool-name.ts";
export {
  BackgroundProcess,
  type FollowOptions,
  type OutputPosition,
  ProcessClient,
  type ProcessEvent,
  type ProcessInfo,
  type ProcessOptions,
} from "./processes.ts";
export { type ConnectPtyOptions, type CreatePtyOptions, createPty, Pty } from "./pty.ts";
export { type Execution, type ExecutionError, parseRunCodeConnect, parseRunCodeStream, Result, type RunCodeCallbacks } from "./run-code.ts";
export {
  type BackgroundOptions,
  type ForkedSandboxes,
  type ForkOptions,
  type RunCodeOptions,
  Sandbox,
  type SandboxOptions,
  type TerminateOptions,
} from "./sandbox.ts";
export { type CreateTemplateOptions, type ForkTemplateOptions, type ListOptions, SandboxServer } from "./server.ts";
export { type BuildStep, Template, type TemplateObject, type TemplateSpec } from "./template.ts";
export type { Health, Isolation, Network, Preview, Resources, SandboxTree, ServerSandbox, TemplateInfo, Workload } from "./types.ts";
