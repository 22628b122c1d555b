import type { Accel, Log } from "../../actions.ts";
import type { Cgroups } from "../host/cgroup.ts";
import type { ShimProgram } from "../host/shim.ts";
import type { Assets } from "./assets.ts";
import type { Bases } from "./bases.ts";
import type { Disks } from "./disks.ts";
import type { Images } from "./images.ts";
import type { Layout } from "./layout.ts";
import type { Details } from "./saved.ts";

/** What every part of this driver works with: one of these per data directory. */
export interface Host extends ShimProgram {
  readonly layout: Layout;
  readonly assets: Assets;
  readonly images: Images;
  readonly bases: Bases;
  readonly disks: Disks;
  /** Snapshots made by this server, by folder: they hold what they stand on for as long as that is there. */
  readonly saved: Map<string, Details>;
  readonly accel: Accel;
  /** Undefined where this user cannot make them: a machine then has no limit but its own memory and number of processors. */
  readonly cgroups: Cgroups | undefined;
  /** The clock of the host's processor, so that a kernel need not measure it, which hangs now and then under emulation. kHz. */
  readonly tscKhz: number;
  /** Machines with this much memory of their own are forked by a new base. */
  readonly newBaseFromBytes: number;
  /** What takes longer to copy is called off. Undefined: what is saved in the other way may take as long (`saveTimeoutMs`). */
  readonly newBaseTimeoutMs: number | undefined;
  readonly log: Log;
}
