//! Who this sandbox is: renewed by every ADOPT.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::watch;

/// Everything that ADOPT sets, as it is now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    pub sandbox_id: String,
    pub template_id: String,
    pub parent_id: String,
    /// Strictly increases along every line of descent; 0 before the first ADOPT.
    pub generation: u64,
    pub fork_budget: u32,
    /// 0 = none.
    pub deadline_unix_ms: i64,
}

#[derive(Default)]
struct Environment {
    base: BTreeMap<String, String>,
    configured: BTreeMap<String, String>,
    secrets: BTreeMap<String, String>,
}

fn environment_state() -> MutexGuard<'static, Environment> {
    static STATE: OnceLock<Mutex<Environment>> = OnceLock::new();
    STATE.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

fn current() -> &'static watch::Sender<Identity> {
    static CURRENT: OnceLock<watch::Sender<Identity>> = OnceLock::new();
    CURRENT.get_or_init(|| watch::Sender::new(Identity::default()))
}

/// Tells of every renewal, after it is complete.
pub fn subscribe() -> watch::Receiver<Identity> {
    current().subscribe()
}

pub fn identity() -> Identity {
    current().borrow().clone()
}

/// Raised by every ADOPT.
pub fn generation() -> u64 {
    current().borrow().generation
}

/// What a process starts with: base, over it the configured environment, over it the secrets.
pub fn environment() -> BTreeMap<String, String> {
    let state = environment_state();
    let mut environment = state.base.clone();
    environment.extend(state.configured.clone());
    environment.extend(state.secrets.clone());
    environment
}

/// Set once by init.
pub fn set_base_environment(base: BTreeMap<String, String>) {
    environment_state().base = base;
}
