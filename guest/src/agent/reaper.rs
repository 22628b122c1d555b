//! Reaps every zombie of the sandbox, as PID 1 must, and hands each exit status of our own children to whoever waits for it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    Exited(i32),
    Signaled(i32),
}

#[derive(Default)]
struct Children {
    waiting: Option<HashMap<i32, oneshot::Sender<ExitStatus>>>,
    /// Starts under way: a status that nobody waits for yet may be that of a child whose pid its parent does not know yet.
    starting: usize,
    early: Vec<(i32, ExitStatus)>,
}

static CHILDREN: Mutex<Children> = Mutex::new(Children { waiting: None, starting: 0, early: Vec::new() });

fn children() -> MutexGuard<'static, Children> {
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `start` (which makes a child and returns its pid) so that the child's status cannot be lost, however soon it ends.
pub fn start_child<E>(start: impl FnOnce() -> Result<i32, E>) -> Result<(i32, oneshot::Receiver<ExitStatus>), E> {
    children().starting += 1;
    let started = start();
    let mut children = children();
    children.starting -= 1;
    let result = started.map(|pid| {
        let (sender, receiver) = oneshot::channel();
        match children.early.iter().position(|(early, _)| *early == pid) {
            Some(index) => {
                let (_, status) = children.early.swap_remove(index);
                let _ = sender.send(status);
            }
            None => {
                children.waiting.get_or_insert_default().insert(pid, sender);
            }
        }
        (pid, receiver)
    });
    if children.starting == 0 {
        children.early.clear();
    }
    result
}

/// Reaps until the process ends. There is one of it.
pub async fn run() -> std::io::Result<()> {
    let mut child_ended = signal(SignalKind::child())?;
    loop {
        reap_all();
        if child_ended.recv().await.is_none() {
            return Ok(());
        }
    }
}

fn reap_all() {
    loop {
        let mut status = 0;
        // SAFETY: `status` is a valid place for one int.
        let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
        if pid <= 0 {
            return;
        }
        let status = if libc::WIFEXITED(status) {
            ExitStatus::Exited(libc::WEXITSTATUS(status))
        } else if libc::WIFSIGNALED(status) {
            ExitStatus::Signaled(libc::WTERMSIG(status))
        } else {
            continue;
        };
        let mut children = children();
        match children.waiting.as_mut().and_then(|waiting| waiting.remove(&pid)) {
            Some(waiter) => {
                let _ = waiter.send(status);
            }
            // An orphan of the sandbox, unless a start is under way.
            None if children.starting > 0 => children.early.push((pid, status)),
            None => {}
        }
    }
}
