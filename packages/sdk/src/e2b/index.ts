/** For programs that were written for `e2b` or `@e2b/code-interpreter`: the same names, on a Mitos server. See docs/guides/migrate-from-e2b.md. */

export type {
  BarChart,
  BarData,
  BoxAndWhiskerChart,
  BoxAndWhiskerData,
  Chart,
  Chart2D,
  ChartTypes,
  LineChart,
  PieChart,
  PieData,
  PointChart,
  PointData,
  ScatterChart,
  SuperChart,
} from "./charts.ts";
export { ChartType, ScaleType } from "./charts.ts";
export { E2B, type E2BClientOpts } from "./client.ts";
export type { Context, CreateCodeContextOpts, RunCodeLanguage, RunCodeOpts } from "./code.ts";
export { CommandExitError, CommandHandle, type CommandResult } from "./command-handle.ts";
export type { CommandConnectOpts, CommandRequestOpts, CommandStartOpts, Commands, ProcessInfo } from "./commands.ts";
export { type EntryInfo, FileType, type WriteInfo } from "./entries.ts";
export {
  AuthenticationError,
  BuildError,
  FileNotFoundError,
  InvalidArgumentError,
  NotEnoughSpaceError,
  NotFoundError,
  RateLimitError,
  SandboxError,
  SandboxNotFoundError,
  ServiceBusyError,
  TemplateError,
  TimeoutError,
} from "./errors.ts";
export { Execution, ExecutionError, type Logs, type MIMEType, OutputMessage, type RawData, Result } from "./execution.ts";
export type {
  Filesystem,
  FilesystemListOpts,
  FilesystemReadOpts,
  FilesystemRequestOpts,
  FilesystemWriteOpts,
  WriteData,
  WriteEntry,
} from "./files.ts";
export type { SandboxInfo, SandboxState } from "./info.ts";
export {
  ALL_TRAFFIC,
  type ConnectionConfigOpts,
  type ConnectionOpts,
  type Logger,
  type SandboxApiOpts,
  type SandboxConnectOpts,
  type SandboxForkOpts,
  type SandboxLifecycle,
  type SandboxNetworkOpts,
  type SandboxNetworkSelector,
  type SandboxOnResume,
  type SandboxOnTimeout,
  type SandboxOpts,
  type SandboxPauseOpts,
  type Username,
} from "./options.ts";
export { type SandboxListOpts, SandboxPaginator } from "./paginator.ts";
export type { Pty, PtyConnectOpts, PtyCreateOpts } from "./pty.ts";
export { Sandbox, Sandbox as default } from "./sandbox.ts";
export { type FilesystemEvent, FilesystemEventType, type WatchHandle, type WatchOpts } from "./watch.ts";
