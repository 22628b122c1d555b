import {
  type Actions,
  type ApiKey,
  type BuildOptions,
  type CreateRequest,
  type Digest,
  type ForkRequest,
  type ForkResult,
  type IdempotencyStore,
  isSameOwner,
  type ListFilter,
  type NodeUsage,
  type Owner,
  type Runtime,
  type Sandbox,
  type SandboxTree,
  type Template,
  type TemplateRequest,
  unknownSandbox,
  unknownTemplate,
} from "@mitos/engine";
import { limits, MitosError, type SandboxId, type TemplateId } from "@mitos/protocol";
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
  readonly #isAdmin: boolean;
  readonly idempotency: IdempotencyStore;

  constructor(engine: Actions, key: ApiKey, quotas: Quotas) {
    this.#engine = engine;
    this.#key = key;
    this.#quotas = quotas;
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

  async createTemplate(request: TemplateRequest, options?: BuildOptions): Promise<Template> {
    const existing = this.#findTemplate(request.id);
    // It is told that a name is taken, not by whom.
    if (existing && !this.#seesTemplate(existing)) throw foreignTemplate(request.id, "create_template");
    if (!existing) this.#requireRoomForTemplate();
    const owner = existing && this.#isAdmin ? existing.owner : ownerOf(this.#key);
    return this.#engine.createTemplate({ ...request, owner }, options);
  }

  listTemplates(): readonly Template[] {
    return this.#engine.listTemplates().filter((template) => this.#seesTemplate(template));
  }

  async *buildEvents(id: TemplateId, options: { follow: boolean }, signal?: AbortSignal) {
    yield* this.#engine.buildEvents(id, options, signal);
  }

  async meaningOf(name: string, signal?: AbortSignal) {
    return this.#engine.meaningOf(name, signal);
  }

  async putContext(digest: Digest, tar: AsyncIterable<Uint8Array>, signal?: AbortSignal) {
    return this.#engine.putContext(digest, tar, signal);
  }

  async hasContext(digest: Digest) {
    return this.#engine.hasContext(digest);
  }

  async pushTemplate(id: TemplateId, reference: string, options?: BuildOptions) {
    return this.#engine.pushTemplate(id, reference, options);
  }

  async pullImage(reference: string, options?: BuildOptions) {
    return this.#engine.pullImage(reference, options);
  }

  listImages() {
    return this.#engine.listImages();
  }

  async diskUsage() {
    return this.#engine.diskUsage();
  }

  async prune(options: { olderThanMs: number }) {
    return this.#engine.prune(options);
  }

  async deleteTemplate(id: TemplateId): Promise<void> {
    const existing = this.#findTemplate(id);
    if (!existing || !this.#seesTemplate(existing)) throw unknownTemplate(id);
    if (!this.#isAdmin && !isSameOwner(this.#key, existing.owner ?? null)) throw foreignTemplate(id, "delete_template");
    return this.#engine.deleteTemplate(id);
  }

  /** What has no workload holds nothing of anybody: such templates are everybody's. Others are their organisation's. */
  #seesTemplate({ owner, workload }: Template): boolean {
    return this.#isAdmin || !owner || !workload || owner.organisation === this.#key.organisation;
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

  #findTemplate(id: TemplateId): Template | undefined {
    return this.#engine.listTemplates().find((template) => template.id === id);
  }

  // ---------------------------------------------------------------- sandboxes

  async create(request: CreateRequest): Promise<Sandbox> {
    const template = this.#findTemplate(request.template);
    if (!template || !this.#seesTemplate(template)) throw unknownTemplate(request.template);
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
