import { createHash } from "node:crypto";
import {
  type Actions,
  type ApiKey,
  type BuildEvent,
  type BuildOptions,
  type CreateRequest,
  type Digest,
  type DiskUsage,
  type ForkRequest,
  type ForkResult,
  type IdempotencyStore,
  isSameOwner,
  type ListFilter,
  type NameMeaning,
  type NodeUsage,
  type Owner,
  type Runtime,
  type Sandbox,
  type SandboxTree,
  type Template,
  type TemplateRequest,
  type TemplateSource,
  unknownSandbox,
  unknownTemplate,
} from "@mitos/engine";
import { isImageReference, limits, MitosError, type SandboxId, type TemplateId } from "@mitos/protocol";
import type { BuildRecords } from "./build-records.ts";
import type { Quotas } from "./quota.ts";

/**
 * The engine as the owner of a key may see and use it. What belongs to others is answered as if it did not exist, word for word.
 *
 * A key with the scope `admin` sees everything; what it makes is its own owner's, and what it forks stays with the owner of the parent.
 */
export class OwnedEngine implements Actions {
  readonly #engine: Actions;
  readonly #key: ApiKey;
  readonly #quotas: Quotas;
  readonly #builds: BuildRecords;
  readonly #isAdmin: boolean;
  readonly idempotency: IdempotencyStore;

  constructor(engine: Actions, key: ApiKey, { quotas, builds }: { readonly quotas: Quotas; readonly builds: BuildRecords }) {
    this.#engine = engine;
    this.#key = key;
    this.#quotas = quotas;
    this.#builds = builds;
    this.#isAdmin = key.scopes.includes("admin");
    this.idempotency = ownIdempotency(engine.idempotency, key);
  }

  get isolation() {
    return this.#engine.isolation;
  }

  get driverName() {
    return this.#engine.driverName;
  }

  // ---------------------------------------------------------------- templates

  async createTemplate(request: TemplateRequest, options: BuildOptions = {}): Promise<Template> {
    const { id, image } = request;
    const existing = this.#findTemplate(id);
    // It is told that a name is taken, not by whom.
    if (existing && !this.#seesTemplate(existing)) throw foreignTemplate(id, "create_template");
    if (existing && holdsSomething(request) && !this.#mayChange(existing)) throw foreignTemplate(id, "create_template");
    const base = image === undefined || image === id || isImageReference(image) ? undefined : this.#findTemplate(image);
    if (base && !this.#seesTemplate(base)) throw unknownName(base.id);
    if (!existing) this.#requireRoomForTemplate();
    const owner = existing && this.#isAdmin ? (existing.owner ?? null) : ownerOf(this.#key);
    const build = { id, organisation: owner?.organisation ?? null, isPrivate: holdsSomething(request) };
    using _building = this.#builds.begin(build);
    const onEvent = (event: BuildEvent) => {
      this.#builds.tells(build);
      options.onEvent?.(event);
    };
    return await this.#engine.createTemplate({ ...request, owner }, { ...options, onEvent });
  }

  listTemplates(): readonly Template[] {
    return this.#engine.listTemplates().filter((template) => this.#seesTemplate(template));
  }

  async deleteTemplate(id: TemplateId): Promise<void> {
    if (!this.#mayChange(this.#requireTemplate(id))) throw foreignTemplate(id, "delete_template");
    return this.#engine.deleteTemplate(id);
  }

  async *buildEvents(id: TemplateId, options: { readonly follow: boolean }, signal?: AbortSignal) {
    if (!this.#seesBuild(id)) throw unknownTemplate(id);
    yield* this.#engine.buildEvents(id, options, signal);
  }

  async pushTemplate(...[id, reference, options]: Parameters<Actions["pushTemplate"]>) {
    this.#requireTemplate(id);
    return this.#engine.pushTemplate(id, reference, options);
  }

  /** @throws not_found for those that the caller does not see */
  #requireTemplate(id: TemplateId): Template {
    const template = this.#findTemplate(id);
    if (!template || !this.#seesTemplate(template)) throw unknownTemplate(id);
    return template;
  }

  /** Those that hold nothing of anybody are everybody's. Others are their organisation's. */
  #seesTemplate(template: Template): boolean {
    const { organisation } = this.#key;
    if (this.#isAdmin) return true;
    if (this.#builds.isTakenOver(template.id, organisation)) return false;
    return !holdsSomething(template) || template.owner?.organisation === organisation;
  }

  /** Of a build that has failed there is no template, and one that was to change a template may have printed what that one does not hold. */
  #seesBuild(id: TemplateId): boolean {
    const { organisation } = this.#key;
    if (this.#isAdmin) return true;
    const last = this.#builds.lastOf(id);
    if (last) return !last.isPrivate || last.organisation === organisation;
    return this.#findTemplate(id)?.owner?.organisation === organisation;
  }

  #mayChange({ owner }: Template): boolean {
    return this.#isAdmin || isSameOwner(this.#key, owner ?? null);
  }

  /** Templates that are being built are in the list already. @throws quota_exceeded */
  #requireRoomForTemplate(): void {
    const count = this.#engine.listTemplates().filter(({ owner }) => isSameOwner(this.#key, owner ?? null)).length;
    const max = limits.templatesPerOwnerMax;
    if (count < max) return;
    throw new MitosError("quota_exceeded", {
      message: "the owner of the key has too many templates",
      cause: `there are ${count}, and ${max} are allowed`,
      remediation: "Delete templates that are not used any more.",
      context: { op: "create_template", dimension: "templates", limit: max },
    });
  }

  #findTemplate(id: string): Template | undefined {
    return this.#engine.listTemplates().find((template) => template.id === id);
  }

  // ---------------------------------------------------------------- images and files of builds

  async meaningOf(name: string, signal?: AbortSignal): Promise<NameMeaning> {
    const meaning = await this.#engine.meaningOf(name, signal);
    const template = meaning.means === "template" ? this.#findTemplate(name) : undefined;
    return template && !this.#seesTemplate(template) ? { name, means: "nothing", reference: "" } : meaning;
  }

  /** Who has sent files may use them, and nobody else: their digest alone opens nothing, and it is not told whether others have them. */
  async putContext(digest: Digest, tar: AsyncIterable<Uint8Array>, signal?: AbortSignal): Promise<void> {
    const hash = createHash("sha256");
    const source = tar[Symbol.asyncIterator]();
    const next = async () => {
      const item = await source.next();
      if (!item.done) hash.update(item.value);
      return item;
    };
    try {
      await this.#engine.putContext(digest, { [Symbol.asyncIterator]: () => ({ next }) }, signal);
      // An engine that has it already need not have read all of it.
      while (!(await next()).done);
    } finally {
      await source.return?.();
    }
    if (`sha256:${hash.digest("hex")}` !== digest) {
      throw new MitosError("invalid_input", { cause: `what was sent has another digest than ${digest}` });
    }
    this.#builds.sent(this.#key, digest);
  }

  async hasContext(digest: Digest): Promise<boolean> {
    return (this.#isAdmin || this.#builds.hasSent(this.#key, digest)) && (await this.#engine.hasContext(digest));
  }

  async pullImage(reference: string, options?: BuildOptions) {
    return this.#engine.pullImage(reference, options);
  }

  listImages() {
    return this.#engine.listImages();
  }

  async diskUsage(): Promise<DiskUsage> {
    const usage = await this.#engine.diskUsage();
    const seen = new Set(this.listTemplates().map(({ id }) => id));
    return { ...usage, templates: usage.templates.filter(({ id }) => seen.has(id)) };
  }

  async prune(options: { readonly olderThanMs: number }) {
    return this.#engine.prune(options);
  }

  // ---------------------------------------------------------------- sandboxes

  async create(request: CreateRequest): Promise<Sandbox> {
    const template = this.#requireTemplate(request.template);
    const owner = ownerOf(this.#key);
    const resources = { ...template.resources, ...request.resources };
    using _reserved = this.#quotas.reserve("create", this.#key, owner, [{ id: request.id, resources }]);
    return await this.#engine.create({ ...request, owner, budgetKeyId: this.#key.id });
  }

  async fork(request: ForkRequest): Promise<ForkResult> {
    const { owner, resources } = this.get(request.source);
    const wanted = request.ids.map((id) => ({ id, resources }));
    using _reserved = this.#quotas.reserve("fork", this.#key, owner, wanted);
    return await this.#engine.fork({ ...request, budgetKeyId: this.#key.id });
  }

  get(id: SandboxId): Sandbox {
    return this.#own(id).get(id);
  }

  ownerOf(id: SandboxId): Owner | null {
    return this.#own(id).ownerOf(id);
  }

  list(filter?: ListFilter): readonly Sandbox[] {
    return this.#engine.list(filter).filter(({ owner }) => this.#isMine(owner));
  }

  /** Everything below a sandbox is of the same owner. */
  tree(id: SandboxId): SandboxTree {
    return this.#own(id).tree(id);
  }

  async terminate(id: SandboxId, options?: { subtree?: boolean }): Promise<void> {
    return this.#own(id).terminate(id, options);
  }

  async pause(id: SandboxId): Promise<void> {
    return this.#own(id).pause(id);
  }

  async resume(id: SandboxId): Promise<void> {
    return this.#own(id).resume(id);
  }

  async setTimeout(id: SandboxId, timeoutSeconds: number): Promise<{ deadlineMs: number }> {
    return this.#own(id).setTimeout(id, timeoutSeconds);
  }

  async meter(id: SandboxId) {
    return this.#own(id).meter(id);
  }

  async console(id: SandboxId): Promise<Uint8Array> {
    return this.#own(id).console(id);
  }

  async meterAll(): Promise<NodeUsage> {
    const { sandboxes, templates } = await this.#engine.meterAll();
    const mine = new Set(this.list().map(({ id }) => id));
    const seen = new Set(this.listTemplates().map(({ id }) => id));
    return { sandboxes: sandboxes.filter(({ id }) => mine.has(id)), templates: templates.filter(({ id }) => seen.has(id)) };
  }

  runtime(id: SandboxId): Runtime {
    return this.#own(id).runtime(id);
  }

  /** @throws not_found */
  #own(id: SandboxId): Actions {
    if (!this.#isMine(this.#engine.ownerOf(id))) throw unknownSandbox(id);
    return this.#engine;
  }

  #isMine(owner: Owner | null): boolean {
    return this.#isAdmin || isSameOwner(this.#key, owner);
  }
}

function ownerOf({ owner, organisation }: Owner): Owner {
  return { owner, organisation };
}

/**
 * Whether somebody's own work is in a template. An image as a registry has it is nobody's; what is made of another template is taken to be
 * like that one.
 */
function holdsSomething({ id, image, steps, warm, workload, source }: TemplateRequest & { readonly source?: TemplateSource }): boolean {
  const isOfOther = image !== undefined && image !== id && !isImageReference(image);
  return Boolean(workload || steps?.length || warm || isOfOther || source?.kind === "build");
}

function unknownName(name: string): MitosError {
  return new MitosError("not_found", {
    cause: `the name ${name} means nothing here`,
    remediation: "Name a template, python, node or base, or an image such as python:3.12-slim.",
  });
}

function foreignTemplate(id: TemplateId, op: string): MitosError {
  return new MitosError("forbidden", {
    cause: `the template id ${id} belongs to another owner`,
    remediation: "Choose another id.",
    context: { op },
  });
}

/** Two owners may choose the same key: each has their own. */
function ownIdempotency(store: IdempotencyStore, { owner, organisation }: Owner): IdempotencyStore {
  const own = (key: string) => JSON.stringify([organisation, owner, key]);
  return {
    begin: (kind, key, intended) => store.begin(kind, own(key), intended),
    complete: (kind, key, resource) => store.complete(kind, own(key), resource),
    release: (kind, key) => store.release(kind, own(key)),
  };
}
