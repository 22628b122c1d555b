//! Starts a program: a child that shares our memory until it has called execve (as posix_spawn does), so that starting costs the same
//! however much memory the agent has. Everything the child does before that is system calls on values prepared beforehand.

use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::oneshot;

use super::reaper::{self, ExitStatus};
use super::user::User;
use super::{limits, link_attributes, programs};
use crate::capabilities;

const NOFILE_DEFAULT: u64 = 65_536;
const NOFILE_MIN: u64 = 64;
const STACK_BYTES: usize = 64 * 1024;
/// A descriptor that has a number which one of the child's is given is moved above all of those, so that placing one cannot overwrite another.
const STAGED_FD_MIN: RawFd = 64;
const UMASK: u32 = 0o022;

/// What the root of an ordinary container may do: chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service,
/// net_raw, sys_chroot, mknod, audit_write, setfcap.
const CAPABILITIES_KEPT: u64 =
    1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 13 | 1 << 18 | 1 << 27 | 1 << 29 | 1 << 31;

pub struct Program<'a> {
    /// At least one; a name without `/` is looked up on the PATH of `env`.
    pub argv: &'a [String],
    pub env: &'a BTreeMap<String, String>,
    pub cwd: &'a str,
    /// None = as the agent itself (tests that are not root).
    pub user: Option<&'a User>,
    /// Which descriptor the child gets under which number (below 64). All others are closed. 0, 1 and 2 should be among them.
    pub fds: Vec<(OwnedFd, RawFd)>,
    /// Descriptor number (of the child) that becomes its controlling terminal.
    pub terminal: Option<RawFd>,
}

pub struct Started {
    pub pid: i32,
    /// Resolves when the child has been reaped.
    pub exit: oneshot::Receiver<ExitStatus>,
}

/// Starts a program as the leader of a session and process group of its own. Blocks until the program is loaded or has failed to.
/// The error is a sentence for the user.
pub fn spawn(program: Program<'_>) -> Result<Started, String> {
    let prepared = Prepared::new(program)?;
    let (pid, exit) = reaper::start_child(|| prepared.start())?;
    Ok(Started { pid, exit })
}

/// A pipe, closed on exec: (read end, write end).
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: `fds` has room for two descriptors.
    if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both were just made and belong to nobody else.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

pub fn set_nonblocking(fd: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: plain fcntl on a descriptor that the caller owns.
    unsafe {
        let flags = libc::fcntl(fd.as_raw_fd(), libc::F_GETFL);
        if flags < 0 || libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

pub fn dev_null() -> io::Result<OwnedFd> {
    Ok(std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?.into())
}

/// Of open files, of every process started: as many as MITOS_RLIMIT_NOFILE of the agent's environment says, if the hard limit is not lower.
fn nofile_limit() -> Option<libc::rlimit> {
    static LIMIT: OnceLock<Option<libc::rlimit>> = OnceLock::new();
    *LIMIT.get_or_init(|| {
        let asked = std::env::var("MITOS_RLIMIT_NOFILE").ok().and_then(|text| text.parse().ok());
        // SAFETY: an all-zero limit is one, and is written to by the call.
        let mut limit: libc::rlimit = unsafe { std::mem::zeroed() };
        if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
            return None;
        }
        limit.rlim_cur = asked.unwrap_or(NOFILE_DEFAULT).max(NOFILE_MIN).min(limit.rlim_max);
        Some(limit)
    })
}

/// Those for which the agent does something else than the default. The reaper's is there before any child, and no other comes later.
fn signals_to_reset() -> &'static [c_int] {
    static SIGNALS: OnceLock<Vec<c_int>> = OnceLock::new();
    SIGNALS.get_or_init(|| (1..=64).filter(|signal| ALWAYS_RESET.contains(signal) || !is_default(*signal)).collect())
}

/// What the reaper handles, the standard library sets, and libc handles (32, 33) when it needs to.
const ALWAYS_RESET: [c_int; 6] = [libc::SIGCHLD, libc::SIGPIPE, libc::SIGSEGV, libc::SIGBUS, 32, 33];

fn is_default(signal: c_int) -> bool {
    // As the kernel has it, the handler first; libc's wrapper refuses 32 and 33.
    let mut action = [0_u64; 8];
    // SAFETY: only asks, and `action` has room for the answer.
    let asked = unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, std::ptr::null::<c_void>(), action.as_mut_ptr(), 8_usize) };
    // SIGKILL and SIGSTOP have nothing else.
    asked != 0 || action[0] == libc::SIG_DFL as u64
}

static BOUNDING_SET_IS_NARROW: AtomicBool = AtomicBool::new(false);

/// What no program may ever gain, the agent gives up for all of them. Before the first thread: then no program has to do it for itself, which is a
/// system call for each capability.
pub fn narrow_bounding_set() -> Result<(), String> {
    capabilities::narrow_bounding_set(CAPABILITIES_KEPT).map_err(|(capability, error)| format!("capability {capability}: {error}"))?;
    BOUNDING_SET_IS_NARROW.store(true, Ordering::Relaxed);
    Ok(())
}

/// Whether the agent may change the bounding set; it may as PID 1 of a sandbox, not in a test as an ordinary user.
fn may_drop_bounding_set() -> bool {
    static MAY: OnceLock<bool> = OnceLock::new();
    *MAY.get_or_init(|| capabilities::may_narrow_bounding_set().unwrap_or(false))
}

/// The step that failed in the child, for the message.
#[derive(Clone, Copy)]
#[repr(i32)]
enum Step {
    Cgroup = 1,
    Session,
    Terminal,
    Descriptors,
    Filter,
    User,
    Capabilities,
    WorkingDirectory,
    Execute,
}

/// Everything the child needs, in the form system calls take.
struct Prepared {
    name: String,
    cwd_text: String,
    paths: Vec<CString>,
    /// Behind each pointer array: the strings, kept alive.
    _strings: Vec<CString>,
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    cwd: CString,
    credentials: Option<(u32, u32, Vec<u32>)>,
    fds: Vec<(OwnedFd, RawFd)>,
    terminal: Option<RawFd>,
    signals: &'static [c_int],
    nofile: Option<libc::rlimit>,
    processes: Option<libc::rlimit>,
    /// Of the cgroup of programs.
    members: Option<RawFd>,
    drop_bounding_set: bool,
    filter: Option<&'static [libc::sock_filter]>,
    /// Written by the child, read by us after it has called execve or exited.
    failed_step: i32,
    failed_errno: i32,
}

fn c_string(text: &str, what: &str) -> Result<CString, String> {
    CString::new(text).map_err(|_| format!("{what} holds a NUL byte"))
}

impl Prepared {
    fn new(program: Program<'_>) -> Result<Self, String> {
        let name = program.argv.first().filter(|name| !name.is_empty()).ok_or("the program has no name")?.clone();
        let mut strings = Vec::with_capacity(program.argv.len() + program.env.len());
        for argument in program.argv {
            strings.push(c_string(argument, "an argument")?);
        }
        for (key, value) in program.env {
            if key.is_empty() || key.contains('=') {
                return Err(format!("{key:?} is not a name of an environment variable"));
            }
            strings.push(c_string(&format!("{key}={value}"), "the environment")?);
        }
        let pointers = |strings: &[CString]| strings.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect();
        let (arguments, variables) = strings.split_at(program.argv.len());
        let (argv, envp) = (pointers(arguments), pointers(variables));
        let numbers: Vec<RawFd> = program.fds.iter().map(|(_, number)| *number).collect();
        let mut fds = Vec::with_capacity(program.fds.len());
        for (fd, number) in program.fds {
            if !(0..STAGED_FD_MIN).contains(&number) {
                return Err(format!("descriptor number {number} is out of range"));
            }
            if !numbers.contains(&fd.as_raw_fd()) {
                fds.push((fd, number));
                continue;
            }
            // SAFETY: duplicates a descriptor that we own.
            let staged = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, STAGED_FD_MIN) };
            if staged < 0 {
                return Err(format!("cannot stage a descriptor: {}", io::Error::last_os_error()));
            }
            // SAFETY: just made, ours alone.
            fds.push((unsafe { OwnedFd::from_raw_fd(staged) }, number));
        }
        Ok(Self {
            paths: candidates(&name, program.env.get("PATH").map_or("", String::as_str))?,
            name,
            cwd_text: program.cwd.into(),
            _strings: strings,
            argv,
            envp,
            cwd: c_string(program.cwd, "the working directory")?,
            credentials: program.user.map(|user| (user.uid, user.gid, user.groups.clone())),
            fds,
            terminal: program.terminal,
            signals: signals_to_reset(),
            nofile: nofile_limit(),
            processes: limits::processes().filter(|_| may_drop_bounding_set()),
            members: programs::members(),
            drop_bounding_set: !BOUNDING_SET_IS_NARROW.load(Ordering::Relaxed) && may_drop_bounding_set(),
            filter: link_attributes::filter().filter(|_| may_drop_bounding_set()),
            failed_step: 0,
            failed_errno: 0,
        })
    }

    fn start(mut self) -> Result<i32, String> {
        let mut stack = vec![0_u128; STACK_BYTES / 16];
        let me: *mut Self = &mut self;
        // SAFETY: the child runs on its own stack and borrows `self` while we are suspended (CLONE_VFORK) until it calls execve or exits.
        // All signals are blocked meanwhile: a handler of ours must not run in the child, in our memory.
        let pid = unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&mut all);
            libc::pthread_sigmask(libc::SIG_BLOCK, &all, &mut before);
            let top = stack.as_mut_ptr().add(stack.len()).cast::<c_void>();
            let pid = libc::clone(child_main, top, libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD, me.cast());
            let error = io::Error::last_os_error();
            libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
            if pid < 0 {
                return Err(format!("cannot start a process: {error}"));
            }
            pid
        };
        // SAFETY: the child wrote these through the same pointer before it ended.
        let (step, errno) =
            unsafe { (std::ptr::read_volatile(&raw const (*me).failed_step), std::ptr::read_volatile(&raw const (*me).failed_errno)) };
        if step == 0 {
            return Ok(pid);
        }
        // The child has exited; the reaper takes it as an orphan.
        let error = io::Error::from_raw_os_error(errno);
        Err(match step {
            step if step == Step::WorkingDirectory as i32 => format!("cannot enter the working directory {:?}: {error}", self.cwd_text),
            step if step == Step::Execute as i32 => format!("cannot run {:?}: {error}", self.name),
            step if step == Step::User as i32 => format!("cannot become the user: {error}"),
            step if step == Step::Terminal as i32 => format!("cannot make the terminal the controlling one: {error}"),
            step if step == Step::Capabilities as i32 => format!("cannot drop capabilities: {error}"),
            _ => format!("cannot set up the process: {error}"),
        })
    }

    /// Only system calls from here on, and no libc wrapper that acts on other threads (the setuid family): we share their memory.
    unsafe fn run_child(&self) -> (Step, c_int) {
        let failed = |step: Step| (step, unsafe { *libc::__errno_location() });
        // SAFETY: every pointer below leads into `self`, which outlives the child's use of it.
        unsafe {
            // All zero in the kernel's form: default action, no flags, empty mask.
            let default = [0_u64; 8];
            for signal in self.signals {
                libc::syscall(libc::SYS_rt_sigaction, *signal, default.as_ptr(), std::ptr::null_mut::<c_void>(), 8_usize);
            }
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
            if let Some(members) = self.members
                && libc::write(members, c"0".as_ptr().cast(), 1) != 1
            {
                return failed(Step::Cgroup);
            }
            if libc::setsid() < 0 {
                return failed(Step::Session);
            }
            for (staged, number) in &self.fds {
                if libc::dup2(staged.as_raw_fd(), *number) < 0 {
                    return failed(Step::Descriptors);
                }
            }
            if let Some(terminal) = self.terminal
                && libc::ioctl(terminal, libc::TIOCSCTTY, 0) < 0
            {
                return failed(Step::Terminal);
            }
            libc::umask(UMASK);
            if let Some(limit) = &self.nofile {
                libc::setrlimit(libc::RLIMIT_NOFILE, limit);
            }
            if let Some(limit) = &self.processes {
                libc::setrlimit(libc::RLIMIT_NPROC, limit);
            }
            if let Some(filter) = self.filter
                && !link_attributes::install(filter)
            {
                return failed(Step::Filter);
            }
            if self.drop_bounding_set && capabilities::narrow_bounding_set(CAPABILITIES_KEPT).is_err() {
                return failed(Step::Capabilities);
            }
            if let Some((uid, gid, groups)) = &self.credentials
                && (libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) < 0
                    || libc::syscall(libc::SYS_setresgid, *gid, *gid, *gid) < 0
                    || libc::syscall(libc::SYS_setresuid, *uid, *uid, *uid) < 0)
            {
                return failed(Step::User);
            }
            if drop_capabilities().is_err() {
                return failed(Step::Capabilities);
            }
            if libc::chdir(self.cwd.as_ptr()) < 0 {
                return failed(Step::WorkingDirectory);
            }
            let mut denied = false;
            for path in &self.paths {
                libc::execve(path.as_ptr(), self.argv.as_ptr(), self.envp.as_ptr());
                match *libc::__errno_location() {
                    libc::EACCES => denied = true,
                    libc::ENOENT | libc::ENOTDIR => {}
                    errno => return (Step::Execute, errno),
                }
            }
            (Step::Execute, if denied { libc::EACCES } else { libc::ENOENT })
        }
    }
}

/// Permitted, effective and ambient sets: no more than an ordinary container's, nothing inheritable.
fn drop_capabilities() -> io::Result<()> {
    let mut sets = capabilities::read()?;
    for (sets, kept) in sets.iter_mut().zip([CAPABILITIES_KEPT as u32, (CAPABILITIES_KEPT >> 32) as u32]) {
        sets.permitted &= kept;
        sets.effective &= kept;
        sets.inheritable = 0;
    }
    // Not every kernel knows ambient capabilities; with nothing inheritable the set is empty anyway.
    let _ = capabilities::clear_ambient();
    capabilities::write(&sets)
}

extern "C" fn child_main(argument: *mut c_void) -> c_int {
    let prepared = argument.cast::<Prepared>();
    // SAFETY: our parent is suspended in `start` and holds the value until we exit.
    unsafe {
        let (step, errno) = (*prepared).run_child();
        std::ptr::write_volatile(&raw mut (*prepared).failed_step, step as i32);
        std::ptr::write_volatile(&raw mut (*prepared).failed_errno, errno);
        libc::_exit(127)
    }
}

/// The paths to try, in order.
fn candidates(name: &str, path_variable: &str) -> Result<Vec<CString>, String> {
    if name.contains('/') {
        return Ok(vec![c_string(name, "the program's name")?]);
    }
    let folders = path_variable.split(':').map(|folder| if folder.is_empty() { "." } else { folder });
    folders.map(|folder| c_string(&format!("{folder}/{name}"), "the program's path")).collect()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn holding(text: &str) -> OwnedFd {
        let (reads, writes) = pipe().unwrap();
        std::fs::File::from(writes).write_all(text.as_bytes()).unwrap();
        reads
    }

    #[test]
    fn descriptors_that_change_their_numbers_with_each_other_stay_what_they_are() {
        // In a process of its own: beside other tests, descriptors have numbers that no program can be given.
        const ALONE: &str = "MITOS_TEST_ALONE";
        if std::env::var_os(ALONE).is_none() {
            let name = "agent::spawn::tests::descriptors_that_change_their_numbers_with_each_other_stay_what_they_are";
            let output =
                std::process::Command::new(std::env::current_exe().unwrap()).args(["--exact", name]).env(ALONE, "1").output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && said.contains("1 passed"), "{said}");
            return;
        }
        let (first, second) = (holding("first "), holding("second "));
        let (out, theirs) = pipe().unwrap();
        let numbers = (first.as_raw_fd(), second.as_raw_fd());
        let script = format!("cat /proc/self/fd/{} /proc/self/fd/{}", numbers.0, numbers.1);
        let argv = ["sh", "-c", &script].map(String::from);
        let env = [("PATH".to_owned(), "/usr/bin:/bin".to_owned())].into();
        let fds = vec![(theirs, 1), (first, numbers.1), (second, numbers.0)];
        let started = spawn(Program { argv: &argv, env: &env, cwd: "/", user: None, fds, terminal: None }).unwrap();
        let mut printed = String::new();
        std::fs::File::from(out).read_to_string(&mut printed).unwrap();
        // SAFETY: plain system call, for a child that nobody else waits for.
        assert_eq!(unsafe { libc::waitpid(started.pid, std::ptr::null_mut(), 0) }, started.pid);
        assert_eq!(printed, "second first ");
    }
}
