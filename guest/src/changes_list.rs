//! What the agent, which tells the changes of a root, and `mitos-layers`, which makes a layer of them, must agree on.

/// Ours, made anew for each machine, or no files at all: the agent tells nothing of them, which means no deletion.
pub const NOT_TOLD: [&str; 11] =
    ["opt/mitos", "etc/hostname", "etc/hosts", "etc/resolv.conf", "etc/machine-id", "etc/mtab", "run", "tmp", "proc", "sys", "dev"];

/// The pax record, with the value `1`, of a file that is as the layers below have it.
pub const SAME_RECORD: &str = "MITOS.same";
