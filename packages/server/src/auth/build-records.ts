import type { Digest, Owner } from "@mitos/engine";
import type { TemplateId } from "@mitos/protocol";
import { ownerName } from "./owner-name.ts";

/** Forgetting the oldest costs their owner one more upload. */
const contextsPerOwnerMax = 1000;
/** Of what is forgotten only those who see the template can read the events. */
const buildsMax = 10_000;

export interface Build {
  readonly id: TemplateId;
  /** Null where the template has no owner. */
  readonly organisation: string | null;
  /** What comes of it is its organisation's alone. */
  readonly isPrivate: boolean;
}

/**
 * What must be known of builds beside the templates that the engine lists: whose files are whose, and who may read what a build says. In
 * memory: after a new start of the server, files are sent once more, and events go by the template.
 */
export class BuildRecords {
  readonly #sent = new Map<string, Set<Digest>>();
  readonly #last = new Map<TemplateId, Build>();
  readonly #underWay = new Set<Build>();

  sent(owner: Owner, digest: Digest): void {
    const name = ownerName(owner);
    const digests = this.#sent.get(name) ?? new Set();
    this.#sent.set(name, digests);
    digests.delete(digest);
    forgetOldest(digests.add(digest), contextsPerOwnerMax);
  }

  hasSent(owner: Owner, digest: Digest): boolean {
    return this.#sent.get(ownerName(owner))?.has(digest) ?? false;
  }

  /** Until it is disposed of, the build is under way. */
  begin(build: Build): Disposable {
    this.#underWay.add(build);
    return { [Symbol.dispose]: () => void this.#underWay.delete(build) };
  }

  /** Notes that events of this build are now what is told of its template. */
  tells(build: Build): void {
    if (this.#last.get(build.id) === build) return;
    this.#last.delete(build.id);
    forgetOldest(this.#last.set(build.id, build), buildsMax);
  }

  /** The build whose events are told. */
  lastOf(id: TemplateId): Build | undefined {
    return this.#last.get(id);
  }

  /** Whether a private build of another organisation is about to take the place of a template: whoever waits for it would get that one. */
  isTakenOver(id: TemplateId, organisation: string): boolean {
    return [...this.#underWay].some((build) => build.id === id && build.isPrivate && build.organisation !== organisation);
  }
}

function forgetOldest(items: Set<unknown> | Map<unknown, unknown>, max: number): void {
  if (items.size > max) items.delete(items.keys().next().value);
}
