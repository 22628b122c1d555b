//! The monitor of a virtual machine: a thread that asks it one list of steps after the other, while the loop goes on with everything else.

mod devices;
mod mapped_ram;
mod mapping;
mod private;
mod qmp;
mod status;
mod steps;
mod stream;
mod timer;

use super::command::Caller;
use nix::sys::eventfd::{EfdFlags, EventFd};
use qmp::Qmp;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
pub use steps::{Outcome, Step};

const JOBS_MAX: usize = 16;
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);

/// The loop's side.
pub struct Vmm {
    shared: Arc<Shared>,
    /// Asked for and not yet taken.
    pending: usize,
}

struct Shared {
    state: Mutex<State>,
    /// Tells the thread of a job, or of the end.
    wake: EventFd,
    /// Tells the loop of an outcome.
    told: EventFd,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    outcomes: VecDeque<(Caller, Outcome)>,
    over: bool,
}

struct Job {
    caller: Caller,
    steps: Vec<Step>,
    target: Option<Target>,
    deadline: Instant,
}

/// The process of which memory is read.
pub struct Target {
    pub pid: i32,
    pub pidfd: OwnedFd,
}

impl Target {
    fn has_ended(&self) -> bool {
        let mut fds = [libc::pollfd { fd: self.pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
        super::sys::poll(&mut fds, 0).is_err() || fds[0].revents != 0
    }
}

impl Shared {
    /// Nothing that holds it can panic half-way through a change.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Vmm {
    /// Also gives the machine's end. This process must not keep it: that the other end is gone is how the thread learns of a machine's end.
    pub fn new() -> Result<(Self, OwnedFd), String> {
        let failed = |error: io::Error| format!("create the socket pair of the monitor: {error}; raise the limit of open files");
        let (ours, machines) = UnixStream::pair().map_err(failed)?;
        let qmp = Qmp::new(ours).map_err(failed)?;
        let event = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(|error| failed(error.into()));
        let shared = Arc::new(Shared { state: Mutex::default(), wake: event()?, told: event()? });
        let threads = shared.clone();
        std::thread::Builder::new()
            .name("vmm".into())
            .stack_size(256 << 10)
            .spawn(move || serve(&threads, qmp))
            .map_err(|error| format!("start a thread: {error}; are threads or memory exhausted?"))?;
        Ok((Self { shared, pending: 0 }, machines.into()))
    }

    pub fn ask(&mut self, caller: Caller, steps: Vec<Step>, target: Option<Target>, timeout_ms: u64) -> Result<(), String> {
        if steps.is_empty() || steps.len() > steps::STEPS_MAX {
            return Err(format!("vmm: give 1 to {} steps", steps::STEPS_MAX));
        }
        if self.pending >= JOBS_MAX {
            return Err(format!("vmm: {JOBS_MAX} operations are waiting; wait for one to end"));
        }
        let deadline = Instant::now() + Duration::from_millis(timeout_ms).min(TIMEOUT_MAX);
        self.pending += 1;
        self.shared.lock().jobs.push_back(Job { caller, steps, target, deadline });
        tell(&self.shared.wake);
        Ok(())
    }

    pub fn pending(&self) -> bool {
        self.pending > 0
    }

    /// Readable when `take` has something.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.shared.told.as_fd()
    }

    pub fn take(&mut self) -> Vec<(Caller, Outcome)> {
        let _ = self.shared.told.read();
        let outcomes: Vec<_> = self.shared.lock().outcomes.drain(..).collect();
        self.pending -= outcomes.len();
        outcomes
    }
}

impl Drop for Vmm {
    /// The thread ends after what it is doing.
    fn drop(&mut self) {
        self.shared.lock().over = true;
        tell(&self.shared.wake);
    }
}

/// Fails only when it has been told 2^64 times unheard.
fn tell(event: &EventFd) {
    let _ = event.write(1);
}

fn serve(shared: &Shared, mut qmp: Qmp) {
    let mut descriptors = steps::Descriptors::default();
    loop {
        let job = {
            let mut state = shared.lock();
            if state.over {
                return;
            }
            state.jobs.pop_front()
        };
        let Some(Job { caller, steps, target, deadline }) = job else {
            wait(shared, &mut qmp);
            continue;
        };
        let outcome = match descriptors.check(&steps) {
            Ok(()) => steps::run(&mut qmp, &mut descriptors, steps, target.as_ref(), deadline),
            Err((step, error)) => Outcome::Failed { ok: false, error, step, class: None, results: Vec::new(), stopped_us: None },
        };
        shared.lock().outcomes.push_back((caller, outcome));
        tell(&shared.told);
    }
}

/// For the next job; what the monitor says meanwhile is nobody's.
fn wait(shared: &Shared, qmp: &mut Qmp) {
    let mut fds = [
        libc::pollfd { fd: shared.wake.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 },
        // -1 makes the kernel skip it.
        libc::pollfd { fd: qmp.fd().map_or(-1, |fd| fd.as_raw_fd()), events: libc::POLLIN, revents: 0 },
    ];
    if super::sys::poll(&mut fds, -1).is_err() {
        return;
    }
    if fds[0].revents != 0 {
        let _ = shared.wake.read();
    }
    if fds[1].revents != 0 {
        qmp.take_unasked();
    }
}
