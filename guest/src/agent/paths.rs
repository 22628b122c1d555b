//! Where the agent's own files lie.

use std::path::PathBuf;
use std::sync::OnceLock;

/// Set by tests that run the agent without being PID 1: a folder that stands for `/` for the agent's own files (`/run`, `/etc`, `/workspace`).
/// With it the agent mounts nothing, and changes neither host name nor clock.
pub const TEST_ROOT_VARIABLE: &str = "MITOS_AGENT_TEST_ROOT";

/// Where programs run, and relative paths begin, unless a template says otherwise.
pub const WORKSPACE: &str = "/workspace";

pub fn test_root() -> Option<&'static str> {
    static ROOT: OnceLock<Option<String>> = OnceLock::new();
    ROOT.get_or_init(|| std::env::var(TEST_ROOT_VARIABLE).ok().filter(|root| root.starts_with('/'))).as_deref()
}

/// `path` (absolute) where the agent's own files are.
pub fn own(path: &str) -> PathBuf {
    match test_root() {
        Some(root) => PathBuf::from(format!("{}{path}", root.trim_end_matches('/'))),
        None => PathBuf::from(path),
    }
}

/// `path` (absolute) where it really is: of what programs see, only the workspace is elsewhere in a test.
pub fn real(path: &str) -> PathBuf {
    let in_workspace = path.strip_prefix(WORKSPACE).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if in_workspace { own(path) } else { PathBuf::from(path) }
}
