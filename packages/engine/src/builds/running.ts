import { MitosError } from "@mitos/protocol";
import type { BuildEvent, BuildOptions, TemplateRequest } from "../actions.ts";
import { orAborted } from "../or-aborted.ts";
import { type BuildLog, failure } from "./events.ts";

/** What a caller wants done anew although it is known. */
export interface Fresh {
  readonly pull: boolean;
  readonly noCache: boolean;
}

/** A build that goes on now, for everybody who waits for it. It ends when the last of them leaves. */
export class RunningBuild<Result> {
  readonly definition: string;
  readonly request: TemplateRequest;
  readonly fresh: Fresh;
  /** What comes of it, and nothing of its machines is left. */
  readonly done: Promise<Result>;
  readonly #log: BuildLog;
  readonly #controller = new AbortController();
  #waiting = 0;

  constructor(
    { definition, request, fresh, log }: { definition: string; request: TemplateRequest; fresh: Fresh; log: BuildLog },
    work: (signal: AbortSignal) => Promise<Result>,
    creationTimeMsOf: (result: Result) => number,
  ) {
    this.definition = definition;
    this.request = request;
    this.fresh = fresh;
    this.#log = log;
    this.done = work(this.#controller.signal).then(
      (result) => {
        log.end({ kind: "done", creationTimeMs: creationTimeMsOf(result) });
        return result;
      },
      (error: unknown) => {
        log.end(failure(error instanceof MitosError ? error : new MitosError("internal", { reason: error })));
        throw error;
      },
    );
    // Whoever waits hears of it; a build that everybody has left fails for nobody.
    this.done.catch(() => undefined);
  }

  get isAborted(): boolean {
    return this.#controller.signal.aborted;
  }

  abort(reason: MitosError): void {
    this.#controller.abort(reason);
  }

  /** Whether this is what a caller with these wishes would begin. */
  serves(definition: string, { pull, noCache }: Fresh): boolean {
    return !this.isAborted && this.definition === definition && (this.fresh.pull || !pull) && (this.fresh.noCache || !noCache);
  }

  /** Waits for it, and hears all of its events. @throws what the build throws, canceled when `signal` is aborted first */
  async join({ signal, onEvent }: BuildOptions): Promise<Result> {
    const deaf = onEvent ? this.#log.listen((event: BuildEvent) => onEvent(event)) : () => {};
    this.#waiting += 1;
    try {
      const left = () => new MitosError("canceled", { cause: `the build of ${this.request.id} was left` });
      return await orAborted(this.done, signal, left);
    } finally {
      this.#waiting -= 1;
      if (this.#waiting === 0)
        this.abort(new MitosError("canceled", { cause: `nobody waits for the build of ${this.request.id} any more` }));
      deaf();
    }
  }
}
