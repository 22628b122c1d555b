/** Mitos for programs that are written for Daytona's TypeScript SDK: docs/guides/migrate-from-daytona.md. */

export { Daytona, type DaytonaConfig, type ListSandboxesQuery } from "./daytona.ts";
export {
  DaytonaAuthenticationError,
  DaytonaBadRequestError,
  DaytonaConflictError,
  DaytonaConnectionError,
  DaytonaError,
  type DaytonaErrorOptions,
  DaytonaFileNotFoundError,
  DaytonaForbiddenError,
  DaytonaGoneError,
  DaytonaInternalServerError,
  DaytonaInvalidArgumentError,
  DaytonaNotFoundError,
  DaytonaProcessExecutionTimeoutError,
  DaytonaRateLimitError,
  DaytonaServiceUnavailableError,
  DaytonaSessionEndedError,
  DaytonaTimeoutError,
  DaytonaUnprocessableEntityError,
  DaytonaValidationError,
} from "./errors.ts";
export { type FileInfo, FileSystem } from "./file-system.ts";
export type {
  CreateSandboxBaseParams,
  CreateSandboxFromImageParams,
  CreateSandboxFromSnapshotParams,
  CreateSandboxParams,
  Resources,
} from "./params.ts";
export { CodeLanguage, CodeRunParams, type ExecuteResponse, type ExecutionArtifacts, Process } from "./process.ts";
export { type ForkSandboxParams, type PortPreviewUrl, Sandbox, SandboxState } from "./sandbox.ts";
export type { Session, SessionCommand, SessionCommandLogsResponse, SessionExecuteRequest, SessionExecuteResponse } from "./sessions.ts";
