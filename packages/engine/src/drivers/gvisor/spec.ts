import { createHash } from "node:crypto";
import { resourceBounds } from "@mitos/protocol";
import type { MachineResources } from "../../driver.ts";
import { type Cgroups, ociResources } from "../host/cgroup.ts";
import { agentPath } from "../host/own-files.ts";
import type { MachineRoot } from "./root.ts";

/**
 * What an ordinary container's root may do, and two more for the agent itself: sys_admin for host name and mounts, sys_resource for the limits
 * of processes that a snapshot holds. Every process that it starts for a user has only the former.
 */
const capabilities = [
  "AUDIT_WRITE",
  "CHOWN",
  "DAC_OVERRIDE",
  "FOWNER",
  "FSETID",
  "KILL",
  "MKNOD",
  "NET_BIND_SERVICE",
  "NET_RAW",
  "SETFCAP",
  "SETGID",
  "SETPCAP",
  "SETUID",
  "SYS_ADMIN",
  "SYS_CHROOT",
  "SYS_RESOURCE",
].map((name) => `CAP_${name}`);

const openFilesMax = 65_536;
const processesMax = resourceBounds.processesMax[1];

const env = [
  "PATH=/opt/mitos/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
  "HOME=/root",
  "USER=root",
  "LANG=C.UTF-8",
  "TERM=xterm-256color",
];

export interface ContainerShape {
  readonly root: MachineRoot;
  readonly resources: MachineResources;
  /** What it writes lies in a file on the disk: only over a root without binds, which would be written through otherwise. It cannot be saved. */
  readonly scratchOnDisk?: true | undefined;
}

/** The OCI bundle's config.json. A restore needs the mounts of the container that was saved: same places, same order. */
export function ociSpec(containerId: string, { root, resources, scratchOnDisk }: ContainerShape, cgroups: Cgroups | undefined): object {
  return {
    ociVersion: "1.0.2",
    process: {
      user: { uid: 0, gid: 0 },
      args: [agentPath, "agent"],
      // Builds write much to /tmp. runsc itself would mount a tmpfs there, so the agent takes it away.
      env: scratchOnDisk ? [...env, "MITOS_TMP_ON_ROOT=1"] : env,
      cwd: "/",
      capabilities: { bounding: capabilities, effective: capabilities, permitted: capabilities },
      rlimits: [
        { type: "RLIMIT_NOFILE", soft: openFilesMax, hard: openFilesMax },
        // The agent gives each program the limit of the sandbox, which may be another than that of its template.
        { type: "RLIMIT_NPROC", soft: processesMax, hard: processesMax },
        { type: "RLIMIT_CORE", soft: 0, hard: 0 },
      ],
    },
    root: { path: root.dir, readonly: false },
    hostname: "sandbox",
    mounts: [
      { destination: "/proc", type: "proc", source: "proc" },
      { destination: "/sys", type: "sysfs", source: "sysfs", options: ["nosuid", "noexec", "nodev", "ro"] },
      { destination: "/dev/shm", type: "tmpfs", source: "tmpfs", options: ["nosuid", "nodev", "mode=1777"] },
      { destination: "/tmp", type: "tmpfs", source: "tmpfs", options: ["nosuid", "nodev", "mode=1777"] },
      { destination: "/run", type: "tmpfs", source: "tmpfs", options: ["nosuid", "nodev", "mode=755"] },
      ...root.binds.map(({ source, destination }) => ({ destination, type: "bind", source, options: ["rbind", "rw"] })),
    ],
    linux: {
      namespaces: ["pid", "network", "ipc", "uts", "mount"].map((type) => ({ type })),
      ...(cgroups ? { cgroupsPath: `/${cgroups.parent}/${containerId}`, resources: ociResources(resources, cgroups) } : {}),
    },
  };
}

/** Containers of one key are interchangeable: any of them can take any snapshot that was made with the same key. */
export function shapeKey(shape: ContainerShape): string {
  const { root, resources, scratchOnDisk } = shape;
  return createHash("sha256")
    .update(JSON.stringify([root.dir, root.binds, resources.vcpuCount, resources.memSizeMiB, resources.processesMax, scratchOnDisk]))
    .digest("hex");
}
