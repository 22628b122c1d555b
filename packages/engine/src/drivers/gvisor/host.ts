import type { Log } from "../../actions.ts";
import type { Cgroups } from "../host/cgroup.ts";
import type { Layout } from "./layout.ts";
import type { RunscCommands } from "./runsc.ts";

/** What every part of this driver works with: one of these per data directory. */
export interface Host {
  readonly layout: Layout;
  readonly runsc: RunscCommands;
  /** The guest binary, which is also the shim. */
  readonly guestPath: string;
  /** Undefined: limits are watched by the shim. */
  readonly cgroups: Cgroups | undefined;
  /** Without root, each shim and all that it starts lives in a user namespace of its own. */
  readonly userNamespace: boolean;
  readonly log: Log;
}
