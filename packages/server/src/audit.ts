import { createWriteStream, openSync, type WriteStream } from "node:fs";
import type { ApiKey, Log } from "@mitos/engine";
import { MitosError } from "@mitos/protocol";

/** One line of the audit log. Never content, environment values, commands or keys. */
export interface AuditEvent {
  readonly sandbox_id: string;
  readonly op: string;
  readonly detail?: string;
  readonly bytes?: number;
  readonly ok: boolean;
  /** Who did it, on a server with keys. */
  readonly key_id?: string;
  readonly owner?: string;
  readonly organisation?: string;
}

export interface Audit {
  record(event: AuditEvent): void;
  close(): Promise<void>;
}

/**
 * @param target - a file path (appended to), `-` or `stderr`; undefined = no audit log
 * @throws invalid_input when the file cannot be opened
 */
export function openAudit(target: string | undefined): Audit {
  if (!target) return { record: () => {}, close: async () => {} };
  const isFile = target !== "-" && target !== "stderr";
  const stream: WriteStream | NodeJS.WriteStream = isFile ? createWriteStream(target, { fd: openFile(target) }) : process.stderr;
  let failed: Error | undefined;
  if (isFile) {
    stream.on("error", (error) => {
      failed = error;
    });
  }
  return {
    record({ sandbox_id, op, detail, bytes, ok, ...caller }) {
      if (failed) throw failed;
      const line = {
        sandbox_id,
        op,
        ...(detail ? { detail } : {}),
        ...(bytes ? { bytes } : {}),
        unix: Math.floor(Date.now() / 1000),
        ok,
        ...caller,
      };
      stream.write(`${JSON.stringify(line)}\n`);
    },
    close: () => (isFile && !failed ? new Promise((resolve) => stream.end(() => resolve())) : Promise.resolve()),
  };
}

function openFile(target: string): number {
  try {
    return openSync(target, "a", 0o600);
  } catch (error) {
    throw new MitosError("invalid_input", {
      message: "the audit log cannot be written",
      cause: error instanceof Error ? error.message : target,
      remediation: "Name a file in a directory that exists and may be written to.",
      reason: error,
    });
  }
}

/** Writes the caller on each line. */
export function auditOf(audit: Audit, { id, owner, organisation }: ApiKey): Pick<Audit, "record"> {
  return { record: (event) => audit.record({ ...event, key_id: id, owner, organisation }) };
}

/** For what has happened already: a line that cannot be written is an error in the log, and nobody's failure. */
export function note(audit: Pick<Audit, "record">, log: Log, event: AuditEvent): void {
  try {
    audit.record(event);
  } catch (error) {
    log.error({ err: error, op: event.op }, "the audit log could not be written");
  }
}

/** One line about an action, whatever becomes of it. */
export async function audited<T>(
  audit: Pick<Audit, "record">,
  event: Pick<AuditEvent, "sandbox_id" | "op" | "detail">,
  action: () => Promise<T>,
): Promise<T> {
  let ok = false;
  try {
    const result = await action();
    ok = true;
    return result;
  } finally {
    audit.record({ ...event, ok });
  }
}
