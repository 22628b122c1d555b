//! Whether a limit of a cgroup was met: killed for want of memory, or refused a task.

use std::fs;
use std::path::{Path, PathBuf};

/// Counts from the moment it is made, so that what happened in the cgroup before does not matter.
pub struct OomCounter {
    file: PathBuf,
    /// None: a kernel without the counter; the number of refused charges stands in for it.
    key: Option<&'static str>,
    before: u64,
}

impl OomCounter {
    pub fn new(cgroup: &Path) -> Result<Self, String> {
        // v2, v1, and v1 before Linux 4.13.
        for (name, key) in [("memory.events", Some("oom_kill")), ("memory.oom_control", Some("oom_kill")), ("memory.failcnt", None)] {
            let file = cgroup.join(name);
            if let Some(before) = read(&file, key) {
                return Ok(Self { file, key, before });
            }
        }
        Err(format!(
            "read the out-of-memory counter of {}: it has no memory.events, memory.oom_control or memory.failcnt; \
             give a memory cgroup folder (v1) or a cgroup folder with the memory controller (v2)",
            cgroup.display()
        ))
    }

    pub fn has_killed(&self) -> bool {
        read(&self.file, self.key).is_some_and(|now| now > self.before)
    }
}

/// Counts refused tasks: gVisor's own process does not survive one.
pub struct TaskCounter {
    file: PathBuf,
    before: u64,
}

impl TaskCounter {
    pub fn new(cgroup: &Path) -> Result<Self, String> {
        // The same name and form in v1 (since Linux 4.5) and v2.
        let file = cgroup.join("pids.events");
        let before = read(&file, Some("max")).ok_or_else(|| {
            format!("read the task counter {}: it is not there; give a cgroup folder with the pids controller", file.display())
        })?;
        Ok(Self { file, before })
    }

    pub fn has_refused(&self) -> bool {
        read(&self.file, Some("max")).is_some_and(|now| now > self.before)
    }
}

fn read(file: &Path, key: Option<&str>) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let Some(key) = key else { return text.trim().parse().ok() };
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(name: &str, before: &str, after: &str) -> bool {
        let dir = std::env::temp_dir().join(format!("mitos-oom-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(name), before).unwrap();
        let counter = OomCounter::new(&dir).unwrap();
        fs::write(dir.join(name), after).unwrap();
        let killed = counter.has_killed();
        fs::remove_dir_all(&dir).unwrap();
        killed
    }

    #[test]
    fn a_kill_is_seen_on_both_versions() {
        let v2 = |kills: u32| format!("low 0\nhigh 0\nmax 9\noom 1\noom_kill {kills}\noom_group_kill 0\n");
        assert!(counted("memory.events", &v2(0), &v2(1)));
        assert!(!counted("memory.events", &v2(3), &v2(3)));
        let v1 = |kills: u32| format!("oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n");
        assert!(counted("memory.oom_control", &v1(0), &v1(1)));
        assert!(!counted("memory.oom_control", &v1(1), &v1(1)));
        assert!(counted("memory.failcnt", "0\n", "12\n"));
    }

    #[test]
    fn a_refused_task_is_seen() {
        let dir = std::env::temp_dir().join(format!("mitos-pids-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("pids.events"), "max 3\n").unwrap();
        let counter = TaskCounter::new(&dir).unwrap();
        assert!(!counter.has_refused());
        fs::write(dir.join("pids.events"), "max 4\n").unwrap();
        assert!(counter.has_refused());
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_folder_without_a_counter_is_refused() {
        assert!(OomCounter::new(Path::new("/proc")).is_err());
        assert!(TaskCounter::new(Path::new("/proc")).is_err());
    }
}
