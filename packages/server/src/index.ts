export { guardProcess, type ProcessGuard } from "./process-guard.ts";
export { type RunningServer, type ServerOptions, startServer } from "./server.ts";
export { startTelemetry, type Telemetry, wantsTelemetry } from "./telemetry.ts";
