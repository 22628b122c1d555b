import { MitosError } from "@mitos/protocol";
import type { NetworkPolicy } from "../actions.ts";
import { machineOverheadBytes } from "../admission.ts";
import { asMitosError, type Core, newMachineId } from "../core.ts";
import { type Machine, type MachineSpec, programsMax } from "../driver.ts";
import { exitWithin } from "../exit-within.ts";
import type { Guest } from "../guest.ts";
import { hostNameOf } from "../host-name.ts";
import type { ImageConfig } from "../images/image.ts";

/** Generation of a template's own machine; its sandboxes begin above it. */
export const templateGeneration = 1;
/** What a booting root with one warm kernel takes, as far as it is known before there is a snapshot. */
const bootBytes = 128 * 1024 * 1024;
/** To put a root together, start the machine and hear from its agent. Roots of many files on a slow disk take minutes. */
const bootMsMax = 10 * 60 * 1000;
/** A virtual machine on an emulated processor was seen to open its link and then say nothing: once in some hundreds, on busy hosts. */
const bootAttempts = 2;
const consoleCharacters = 2048;
const ownersShareOfMemory = 4;
/** How much longer than the work in it a machine lives whose server has died. */
const graceMs = 60_000;
/** How long a machine whose link has ended may take to say why. */
const lastWordsMs = 1_000;

export interface BuildMachine extends Pick<MachineSpec, "root" | "resources" | "scratch"> {
  /** The template that is being built. */
  readonly id: string;
  readonly network: NetworkPolicy;
  /** What programs in it start with. */
  readonly config: Pick<ImageConfig, "env" | "workdir" | "user">;
  /** For all that is done in it once it is up. */
  readonly workMsMax: number;
}

/** A machine of a build that is up and may be talked to. */
export interface Session {
  readonly machine: Machine;
  readonly guest: Guest;
}

/**
 * Boots a machine, works in it and ends it. When `signal` is aborted, or the time is up, the machine ends at once, and with it whatever is
 * under way in it. Whatever fails, nothing of the machine is left.
 *
 * @throws what `work` throws; the reason of the signal; build_failed when it took too long, ended by itself or ran out of memory
 */
export async function withMachine<T>(
  core: Core,
  spec: BuildMachine,
  signal: AbortSignal,
  work: (session: Session) => Promise<T>,
): Promise<T> {
  signal.throwIfAborted();
  using _memory = core.admission.reserve(
    "template",
    Math.min(bootBytes, spec.resources.memSizeMiB * 1024 * 1024) + 2 * machineOverheadBytes(core.driver),
  );
  const limit = new Limit(signal);
  let machine: Machine | undefined;
  let guest: Guest | undefined;
  try {
    limit.set(core, bootMsMax, `the machine was not up after ${bootMsMax / 1000} s`);
    const session = await bringUp(core, spec, limit, (booted) => {
      machine = booted;
    });
    guest = session.guest;
    limit.set(core, spec.workMsMax, `it was not done after ${Math.ceil(spec.workMsMax / 1000)} s`);
    return await work(session);
  } catch (error) {
    limit.signal.throwIfAborted();
    throw (machine && !isVerdict(error) && (await diedOf(machine, spec, error))) || asVerdict(error);
  } finally {
    limit.clear();
    guest?.close(new MitosError("canceled", { cause: "the machine of a build is not needed any more" }));
    await machine?.end("build over");
  }
}

/** @param onBoot - is told of each machine as soon as there is one, and ends the last */
async function bringUp(core: Core, spec: BuildMachine, limit: Limit, onBoot: (machine: Machine) => void): Promise<Session> {
  for (let attempt = 1; ; attempt += 1) {
    const machine = await boot(core, spec, limit, onBoot);
    try {
      return { machine, guest: await openGuest(core, spec, machine) };
    } catch (error) {
      if (attempt >= bootAttempts || !(await saysNothing(machine, error))) throw error;
      const said = await lastWords(machine);
      core.log.warn({ template: spec.id, attempt, console: said }, "a machine has booted and says nothing: it is started anew");
      await machine.end("it says nothing");
    }
  }
}

async function boot(core: Core, spec: BuildMachine, limit: Limit, onBoot: (machine: Machine) => void): Promise<Machine> {
  const machine = await core.starts.run(() => {
    limit.signal.throwIfAborted();
    return core.driver.boot({
      machineId: newMachineId(),
      root: spec.root,
      resources: spec.resources,
      hostName: hostNameOf(spec.id),
      ...(spec.scratch ? { scratch: spec.scratch } : {}),
    });
  });
  onBoot(machine);
  limit.signal.addEventListener("abort", () => void machine.end("the build was ended"), { once: true });
  limit.signal.throwIfAborted();
  // It must not stay when its server dies and none comes back.
  await machine.setDeadline(Date.now() + bootMsMax + spec.workMsMax + graceMs);
  return machine;
}

/** It lives, and its agent has not answered in the time for that. */
async function saysNothing(machine: Machine, error: unknown): Promise<boolean> {
  return error instanceof MitosError && error.code === "unavailable" && !(await exitWithin(machine, lastWordsMs));
}

async function lastWords(machine: Machine): Promise<string> {
  const said = await machine.console().catch(() => new Uint8Array());
  return Buffer.from(said)
    .toString("latin1")
    .replaceAll(/[^\x20-\x7e\n]/g, "")
    .slice(-consoleCharacters);
}

async function openGuest(core: Core, { id, network, config, resources, root, scratch }: BuildMachine, machine: Machine): Promise<Guest> {
  const guest = core.connectGuest(machine, {
    onActivity: () => () => {},
    egress: core.egress.open({ id, network, usage: { sentBytes: 0, receivedBytes: 0 } }),
    onForkSelf: () => Promise.reject(new MitosError("budget_exhausted", { cause: "a template that is being built cannot fork" })),
    onLost: (error) => core.log.info({ template: id, error: error.message }, "the link to a machine of a build was lost"),
  });
  try {
    await guest.open({
      sandboxId: id,
      templateId: id,
      parentId: null,
      generation: templateGeneration,
      env: config.env,
      secrets: {},
      forgetSecrets: true,
      deadlineMs: null,
      forkBudget: 0,
      forksUsed: 0,
      processesMax: programsMax(resources),
      user: config.user,
      cwd: config.workdir,
    });
    // Copies for owners that the host could not give lie where everything lies that the machine writes: in memory they must leave room.
    const copyBytesMax = scratch === "disk" ? undefined : (resources.memSizeMiB * 1024 * 1024) / ownersShareOfMemory;
    const left = await guest.setOwners(await core.driver.ownersOf(root), { copyBytesMax });
    if (left > 0)
      core.log.warn(
        { template: id, files: left },
        "large files of an image stay root's: this server is not root, and they would fill the memory",
      );
    return guest;
  } catch (error) {
    guest.close(new MitosError("canceled", { cause: "the machine of a build did not come up" }));
    throw error;
  }
}

/** What a step or a program in the machine did wrong is not to be explained by the end of the machine. */
function isVerdict(error: unknown): boolean {
  return error instanceof MitosError && error.code === "build_failed";
}

/** The machine's silence is no state of this server, which may well be asked again. */
function asVerdict(error: unknown): MitosError {
  const ours = asMitosError(error, "its machine could not be used");
  if (ours.code !== "internal" && ours.code !== "unavailable") return ours;
  return new MitosError("build_failed", { cause: ours.detail.cause ?? ours.message, reason: error });
}

/** Why a machine ended under its work, if it did. */
async function diedOf(machine: Machine, { resources }: BuildMachine, reason: unknown): Promise<MitosError | undefined> {
  const exit = await exitWithin(machine, lastWordsMs);
  if (!exit) return undefined;
  if (exit.reason === "oom_killed") {
    return new MitosError("build_failed", {
      cause: `it needed more memory than the ${resources.memSizeMiB} MiB of its machine`,
      remediation: "Give the template more memory (resources.mem_size_mib), or let the command use less.",
      reason,
    });
  }
  return new MitosError("build_failed", { cause: `its machine ended (${exit.reason}): ${exit.detail}`, reason });
}

/** Aborted by the build's own signal, or when what goes on now takes too long. */
class Limit {
  readonly #late = new AbortController();
  readonly signal: AbortSignal;
  #cancel: () => void = () => {};

  constructor(signal: AbortSignal) {
    this.signal = AbortSignal.any([signal, this.#late.signal]);
  }

  set(core: Core, ms: number, cause: string): void {
    this.#cancel();
    const remediation = "Let it do less, or raise the time-out of what it waits for.";
    this.#cancel = core.clock.after(ms, () => this.#late.abort(new MitosError("build_failed", { cause, remediation })));
  }

  clear(): void {
    this.#cancel();
  }
}
