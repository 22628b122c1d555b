import { CommandError, exitCodes } from "../exit.ts";
import { interruptible } from "../signals.ts";
import { newReport, type ProgressEvent, printEvent } from "./report.ts";

export interface Following {
  readonly signal: AbortSignal;
  readonly onEvent: (event: ProgressEvent) => void;
}

/**
 * Does what takes long before the user's eyes. Ctrl-C ends it.
 *
 * @param what - as in `the build of app`
 * @param after - what there is after it was interrupted
 */
export async function following<Answer>(
  what: string,
  asJson: boolean,
  after: string,
  work: (following: Following) => Promise<Answer>,
): Promise<Answer> {
  using interrupt = interruptible();
  let isToldFailed = false;
  try {
    // Gone before anything else is printed.
    using report = newReport(asJson);
    const onEvent = (event: ProgressEvent) => {
      isToldFailed ||= event.kind === "failed";
      // In JSON the last line has the answer in it, and is ours.
      if (!asJson || event.kind !== "done") report.show(event);
    };
    return await work({ signal: interrupt.signal, onEvent });
  } catch (error) {
    const told = interrupt.signal.aborted ? canceled(what, interrupt.signal.reason, after) : error;
    if (asJson && !isToldFailed) printEvent(failedEvent(told));
    throw told;
  }
}

function canceled(what: string, reason: unknown, after: string): CommandError {
  const why = reason instanceof Error ? reason.message : "";
  return new CommandError(`${what} was canceled`, why, after, exitCodes.interrupted);
}

/** What failed before there was a stream of events, or without one, in the form of its last event. */
function failedEvent(error: unknown): object {
  const { message = String(error), code, errorCause, detail, remediation, remedy } = error as Record<string, unknown>;
  return {
    kind: "failed",
    atMs: Date.now(),
    code: code ?? (error instanceof CommandError && error.exitCode === exitCodes.interrupted ? "canceled" : "internal"),
    message,
    cause: errorCause ?? detail ?? "",
    remediation: remediation ?? remedy ?? "",
  };
}
