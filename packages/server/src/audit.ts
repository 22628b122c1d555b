import { createWriteStream, type WriteStream } from "node:fs";

/** One line of the audit log. Never content, environment values, commands or keys. */
export interface AuditEvent {
  readonly sandbox_id: string;
  readonly op: string;
  readonly detail?: string;
  readonly bytes?: number;
  readonly ok: boolean;
}

export interface Audit {
  record(event: AuditEvent): void;
  close(): Promise<void>;
}

/** @param target - a file path (appended to), `-` or `stderr`; undefined = no audit log */
export function openAudit(target: string | undefined): Audit {
  if (!target) return { record: () => {}, close: async () => {} };
  const isFile = target !== "-" && target !== "stderr";
  const stream: WriteStream | NodeJS.WriteStream = isFile ? createWriteStream(target, { flags: "a", mode: 0o600 }) : process.stderr;
  let failed: Error | undefined;
  if (isFile) {
    stream.on("error", (error) => {
      failed = error;
    });
  }
  return {
    record({ sandbox_id, op, detail, bytes, ok }) {
      if (failed) throw failed;
      const line = { sandbox_id, op, ...(detail ? { detail } : {}), ...(bytes ? { bytes } : {}), unix: Math.floor(Date.now() / 1000), ok };
      stream.write(`${JSON.stringify(line)}\n`);
    },
    close: () => (isFile && !failed ? new Promise((resolve) => stream.end(() => resolve())) : Promise.resolve()),
  };
}
