import { MitosError } from "@mitos/protocol";
import type { Core } from "../core.ts";
import type { Machine } from "../driver.ts";
import type { Guest, GuestHooks } from "../guest.ts";

/** Restored, and greeted on its link; it has no identity yet, and does nothing on the host until it is woken. */
export class WaitingMachine {
  readonly machine: Machine;
  readonly guest: Guest;
  readonly sinceMs: number;
  /** What it is expected to take of the host's memory. */
  readonly bytes: number;
  #owner: GuestHooks | undefined;

  constructor(core: Core, machine: Machine, { bytes, onLost }: { bytes: number; onLost: () => void }) {
    this.machine = machine;
    this.sinceMs = core.clock.nowMs();
    this.bytes = bytes;
    const owner = (): GuestHooks => {
      if (!this.#owner) throw new MitosError("unavailable", { cause: "this machine is no sandbox yet" });
      return this.#owner;
    };
    this.guest = core.connectGuest(machine, {
      onActivity: () => owner().onActivity(),
      onForkSelf: async (count, label) => owner().onForkSelf(count, label),
      egress: {
        connect: async (host, port, stream) => owner().egress.connect(host, port, stream),
        ports: (name) => owner().egress.ports(name),
      },
      onLost: (error) => (this.#owner ? this.#owner.onLost(error) : onLost()),
    });
    void machine.exited.then(() => !this.#owner && onLost());
  }

  get isWoken(): boolean {
    return this.#owner !== undefined;
  }

  /** It runs again and is whosever hooks these are, who has to adopt it. */
  async wake(hooks: GuestHooks): Promise<void> {
    this.#owner = hooks;
    await this.machine.thaw();
  }

  end(reason: string): Promise<void> {
    this.guest.close(new MitosError("unavailable", { cause: reason }));
    return this.machine.end(reason);
  }
}
