export type { KeyJson, NewKeyJson } from "@mitos/protocol";
export type { BuildEvent, BuildProgress, ServerBuildStep } from "./builds.ts";
export { type Connection, DEFAULT_BASE_URL, resolveConnection, toBaseUrl, validSandboxId } from "./config.ts";
export { ConnectClient, type Message } from "./connect.ts";
export type { CodeContext, ContextOptions, ContextRef } from "./contexts.ts";
export { type CreateOptions, create, type NamedCreateOptions } from "./create.ts";
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
export type { DiskUsage, ImageInfo, NameMeaning, PushedImage } from "./images.ts";
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
export { type ConnectPtyOptions, type CreatePtyOptions, createPty, Pty, type PtyCallbacks } from "./pty.ts";
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
export {
  type BuildStep,
  type DockerfileOptions,
  type ReadyHttpOptions,
  type ReadyOptions,
  Template,
  type TemplateObject,
  type TemplateSpec,
  type WarmCode,
} from "./template.ts";
export type {
  Health,
  Isolation,
  Network,
  Preview,
  ReadyCheck,
  Resources,
  SandboxTree,
  ServerSandbox,
  TemplateInfo,
  TemplateSource,
  Workload,
} from "./types.ts";
