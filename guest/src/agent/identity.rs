//! Who this sandbox is: renewed by every ADOPT.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use super::files::make_directories;
use super::paths::{self, test_root};
use super::user::User;
use super::{limits, small_file};
use crate::proto::guest::v1 as pb;

/// Everything that ADOPT sets, as it is now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    pub sandbox_id: String,
    pub template_id: String,
    pub parent_id: String,
    /// Strictly increases along every line of descent; 0 before the first ADOPT.
    pub generation: u64,
    pub fork_budget: u32,
    /// How much of the budget is spent.
    pub forks_used: u32,
    /// 0 = none.
    pub deadline_unix_ms: i64,
}

#[derive(Default)]
struct Environment {
    base: BTreeMap<String, String>,
    configured: BTreeMap<String, String>,
    secrets: BTreeMap<String, String>,
}

/// What is used where a call says nothing. In the memory of this process, so snapshots and children have it.
#[derive(Clone)]
struct Defaults {
    user: String,
    directory: String,
}

fn defaults() -> MutexGuard<'static, Defaults> {
    static DEFAULTS: OnceLock<Mutex<Defaults>> = OnceLock::new();
    let at_start = || Mutex::new(Defaults { user: "root".into(), directory: paths::WORKSPACE.into() });
    DEFAULTS.get_or_init(at_start).lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whom programs run as when nobody is named, as `user::find` takes it.
pub fn default_user() -> String {
    defaults().user.clone()
}

/// Where programs run when no directory is named.
pub fn default_directory() -> String {
    let directory = defaults().directory.clone();
    if paths::real(&directory).is_dir() { directory } else { "/".into() }
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

/// The host has made children that a program here asked for.
pub fn spend_forks(count: u32) {
    current().send_modify(|identity| identity.forks_used = identity.forks_used.saturating_add(count));
}

/// Raised by every ADOPT.
pub fn generation() -> u64 {
    current().borrow().generation
}

/// What a process starts with: base with the home and name of its user, over it the configured environment, over it the secrets.
pub fn environment(user: Option<&User>) -> BTreeMap<String, String> {
    let state = environment_state();
    let mut environment = state.base.clone();
    if let Some(user) = user {
        for (key, value) in [("HOME", &user.home), ("USER", &user.name), ("LOGNAME", &user.name)] {
            environment.insert(key.into(), value.clone());
        }
    }
    environment.extend(state.configured.clone());
    environment.extend(state.secrets.clone());
    environment
}

/// Set once by init.
pub fn set_base_environment(base: BTreeMap<String, String>) {
    environment_state().base = base;
}

// ---------------------------------------------------------------- ADOPT

const ENTROPY_BYTES: usize = 32;
const HOST_NAME_BYTES_MAX: usize = 64;
/// More than lists of unwanted hosts have.
const HOSTS_BYTES_MAX: u64 = 64 << 20;
const USER_BYTES_MAX: usize = 256;
const PATH_BYTES_MAX: usize = 4096;
/// A clock that is behind by more than the host's is exact is wrong: what it is told was true when it was sent.
const CLOCK_BEHIND_MAX_NANOS: i128 = 2_000_000;
/// One that is ahead by less may be right: that is how long the message was on its way.
const CLOCK_AHEAD_MAX_NANOS: i128 = 500_000_000;

/// Renews everything, right here: nothing else is served meanwhile, and another thread would be one more to wake. With `error` set the identity is
/// half renewed and the machine must not be served.
pub fn adopt(request: pb::Adopt) -> pb::Adopted {
    let (round, generation) = (request.round, request.generation);
    match renew(request) {
        Ok(Renewed { clock_step_nanos, entropy_credited }) => {
            pb::Adopted { round, generation, clock_step_nanos, entropy_credited, error: String::new() }
        }
        Err(error) => pb::Adopted { round, generation: self::generation(), error, ..Default::default() },
    }
}

struct Renewed {
    clock_step_nanos: i64,
    entropy_credited: bool,
}

fn renew(request: pb::Adopt) -> Result<Renewed, String> {
    check(&request)?;
    // Randomness first: everything after may use it. The generation file last: who watches it finds everything renewed.
    let entropy_credited = renew_entropy(&request.entropy)?;
    let clock_step_nanos = step_clock(request.wall_clock_unix_nanos);
    renew_host_name(&request.host_name)?;
    write_atomically("/etc/machine-id", format!("{}\n", request.machine_id), 0o444)?;
    limits::set_processes_max(request.processes_max);
    {
        let mut state = environment_state();
        if request.forget_secrets {
            state.secrets.clear();
        }
        state.configured.extend(request.env);
        state.secrets.extend(request.secrets);
    }
    {
        let mut defaults = defaults();
        if !request.default_user.is_empty() {
            defaults.user = request.default_user;
        }
        if !request.default_cwd.is_empty() {
            defaults.directory = request.default_cwd;
        }
    }
    write_atomically("/run/sandbox/fork-generation", format!("{}\n", request.generation), 0o644)?;
    current().send_replace(Identity {
        sandbox_id: request.sandbox_id,
        template_id: request.template_id,
        parent_id: request.parent_id,
        generation: request.generation,
        fork_budget: request.fork_budget,
        forks_used: request.forks_used,
        deadline_unix_ms: request.deadline_unix_ms,
    });
    Ok(Renewed { clock_step_nanos, entropy_credited })
}

/// Everything is checked before anything is changed.
fn check(request: &pb::Adopt) -> Result<(), String> {
    let now = generation();
    if request.generation <= now {
        return Err(format!("generation {} does not follow {now}", request.generation));
    }
    if request.sandbox_id.is_empty() {
        return Err("the sandbox id is empty".into());
    }
    if request.entropy.len() != ENTROPY_BYTES {
        return Err(format!("the entropy must be {ENTROPY_BYTES} bytes"));
    }
    let name = request.host_name.as_bytes();
    let is_name_byte = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    if name.is_empty() || name.len() > HOST_NAME_BYTES_MAX || !name.iter().all(is_name_byte) {
        return Err("the host name must be 1 to 64 letters, digits, hyphens and dots".into());
    }
    let id = request.machine_id.as_bytes();
    if id.len() != 32 || !id.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Err("the machine id must be 32 lower-case hexadecimal characters".into());
    }
    if request.default_user.len() > USER_BYTES_MAX || request.default_user.contains('\0') {
        return Err("the default user cannot be one".into());
    }
    let directory = &request.default_cwd;
    if !directory.is_empty() && (!directory.starts_with('/') || directory.len() > PATH_BYTES_MAX || directory.contains('\0')) {
        return Err("the default working directory must be an absolute path".into());
    }
    let bad_variable = |(key, value): (&String, &String)| key.is_empty() || key.contains(['=', '\0']) || value.contains('\0');
    if request.env.iter().any(bad_variable) || request.secrets.iter().any(bad_variable) {
        return Err("an environment variable has an impossible name or value".into());
    }
    Ok(())
}

/// Credits the entropy and has the kernel reseed at once: entropy alone does not change what children read next. Where the kernel has no
/// such calls (gVisor) it renews itself; then only that it answers is verified.
fn renew_entropy(entropy: &[u8]) -> Result<bool, String> {
    #[repr(C)]
    struct PoolInfo {
        entropy_bits: libc::c_int,
        buffer_bytes: libc::c_int,
        buffer: [u8; ENTROPY_BYTES],
    }
    const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
    const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
    let mut credited = false;
    if test_root().is_none()
        && let Ok(buffer) = <[u8; ENTROPY_BYTES]>::try_from(entropy)
        && let Ok(random) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/random")
    {
        let pool = PoolInfo { entropy_bits: ENTROPY_BYTES as libc::c_int * 8, buffer_bytes: ENTROPY_BYTES as libc::c_int, buffer };
        // SAFETY: the first call reads one rand_pool_info with its buffer, the second takes nothing.
        credited = unsafe {
            libc::ioctl(random.as_raw_fd(), RNDADDENTROPY as _, &pool) == 0 && libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG as _) == 0
        };
    }
    let mut sample = [0_u8; 32];
    // SAFETY: writes at most the length of `sample`.
    let count = unsafe { libc::getrandom(sample.as_mut_ptr().cast(), sample.len(), libc::GRND_NONBLOCK) };
    if count != sample.len() as isize || sample == [0; 32] {
        return Err(format!("the kernel gives no randomness: {}", io::Error::last_os_error()));
    }
    Ok(credited)
}

/// Steps the wall clock when it is off, and says by how much: the clock of a virtual machine stands still while that does. A kernel that does
/// not let us (gVisor) takes its clock from the host, where it is right. 0 = the host did not say.
pub fn step_clock(wanted_unix_nanos: i64) -> i64 {
    let Ok(now) = SystemTime::now().duration_since(UNIX_EPOCH) else { return 0 };
    let drift = i128::from(wanted_unix_nanos) - now.as_nanos() as i128;
    let is_right = (-CLOCK_AHEAD_MAX_NANOS..=CLOCK_BEHIND_MAX_NANOS).contains(&drift);
    if wanted_unix_nanos <= 0 || is_right || test_root().is_some() {
        return 0;
    }
    let wanted = libc::timespec { tv_sec: wanted_unix_nanos / 1_000_000_000, tv_nsec: wanted_unix_nanos % 1_000_000_000 };
    // SAFETY: reads one timespec.
    if unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &wanted) } == 0 { i64::try_from(drift).unwrap_or(i64::MAX) } else { 0 }
}

fn renew_host_name(name: &str) -> Result<(), String> {
    if test_root().is_none() {
        nix::unistd::sethostname(name).map_err(|error| format!("the host name cannot be set: {error}"))?;
    }
    write_atomically("/etc/hostname", format!("{name}\n"), 0o644)?;
    let hosts = hosts(&paths::own("/etc/hosts"));
    write_atomically("/etc/hosts", hosts_with(&hosts, name), 0o644)
}

fn hosts(path: &Path) -> Vec<u8> {
    small_file::read(path, HOSTS_BYTES_MAX).unwrap_or_else(|_| "127.0.0.1\tlocalhost\n::1\tlocalhost\n".into())
}

/// The file with one line for our own name, the usual place of which is 127.0.1.1.
fn hosts_with(hosts: &[u8], name: &str) -> Vec<u8> {
    let is_ours = |line: &[u8]| line.trim_ascii_start().split(u8::is_ascii_whitespace).next() == Some(b"127.0.1.1");
    let mut text = Vec::with_capacity(hosts.len() + HOST_NAME_BYTES_MAX);
    for line in hosts.split_inclusive(|byte| *byte == b'\n').filter(|line| !is_ours(line)) {
        text.extend_from_slice(line.strip_suffix(b"\n").unwrap_or(line));
        text.push(b'\n');
    }
    text.extend_from_slice(format!("127.0.1.1\t{name}\n").as_bytes());
    text
}

/// Replaces a file by rename, so that a reader sees the old or the new content and a watcher of the folder one event. One that is a mount of its own,
/// as a virtual machine's, is written in its place: nobody reads it meanwhile, since programs stand still. A program may have removed the folder.
fn write_atomically(path: &str, content: impl AsRef<[u8]>, mode: u32) -> Result<(), String> {
    let target = paths::own(path);
    let temporary = target.with_extension("mitos-new");
    let write = || -> io::Result<()> {
        if is_mount(&target) {
            return std::fs::write(&target, content);
        }
        target.parent().map_or(Ok(()), make_directories)?;
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(content.as_ref())?;
        std::fs::rename(&temporary, &target)
    };
    write().map_err(|error| format!("{path} cannot be written: {error}"))
}

/// Whether it is on another mount than its folder. False where the kernel does not say (gVisor), and for what is not there.
fn is_mount(path: &Path) -> bool {
    let ids = path.parent().map(|folder| (mount_id(folder), mount_id(path)));
    matches!(ids, Some((Some(folder), Some(own))) if folder != own)
}

fn mount_id(path: &Path) -> Option<u64> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: all zeros is a valid value of the plain struct, which the call fills.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: a terminated path, and a struct that lives.
    let result = unsafe { libc::statx(libc::AT_FDCWD, path.as_ptr(), libc::AT_SYMLINK_NOFOLLOW, libc::STATX_MNT_ID, &mut found) };
    (result == 0 && found.stx_mask & libc::STATX_MNT_ID != 0).then_some(found.stx_mnt_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adopt(generation: u64) -> pb::Adopt {
        pb::Adopt {
            generation,
            sandbox_id: "sb-1".into(),
            entropy: vec![1; 32].into(),
            host_name: "sb-1".into(),
            machine_id: "0123456789abcdef0123456789abcdef".into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_request_is_checked_in_full() {
        assert_eq!(check(&adopt(1)), Ok(()));
        assert!(check(&adopt(0)).is_err());
        assert!(check(&pb::Adopt { sandbox_id: String::new(), ..adopt(1) }).is_err());
        assert!(check(&pb::Adopt { entropy: vec![1; 31].into(), ..adopt(1) }).is_err());
        assert!(check(&pb::Adopt { host_name: "a b".into(), ..adopt(1) }).is_err());
        assert!(check(&pb::Adopt { machine_id: "0123456789ABCDEF0123456789ABCDEF".into(), ..adopt(1) }).is_err());
        assert!(check(&pb::Adopt { env: [("A=B".into(), String::new())].into(), ..adopt(1) }).is_err());
        assert!(check(&pb::Adopt { secrets: [("A".into(), "\0".into())].into(), ..adopt(1) }).is_err());
        assert!(check(&pb::Adopt { default_user: "a\0".into(), ..adopt(1) }).is_err());
        assert!(check(&pb::Adopt { default_cwd: "app".into(), ..adopt(1) }).is_err());
    }

    #[test]
    fn names_that_programs_gave_stay_beside_bytes_that_are_no_text() {
        let path = std::env::temp_dir().join(format!("mitos-hosts-{}", std::process::id()));
        std::fs::write(&path, b"# caf\xe9\n10.0.0.7 database\n").unwrap();
        let hosts = hosts(&path);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(hosts_with(&hosts, "a"), b"# caf\xe9\n10.0.0.7 database\n127.0.1.1\ta\n");
    }

    #[test]
    fn a_folder_that_was_removed_is_made_again() {
        let folder = std::env::temp_dir().join(format!("mitos-identity-{}", std::process::id()));
        let path = folder.join("run/sandbox/fork-generation");
        let written = write_atomically(path.to_str().unwrap(), "2\n", 0o644);
        let content = std::fs::read_to_string(&path);
        let _ = std::fs::remove_dir_all(&folder);
        assert_eq!(written, Ok(()));
        assert_eq!(content.unwrap(), "2\n");
    }

    #[test]
    fn the_hosts_file_has_one_line_for_us() {
        let once = hosts_with(b"127.0.0.1 localhost", "a");
        assert_eq!(once, b"127.0.0.1 localhost\n127.0.1.1\ta\n");
        assert_eq!(hosts_with(&once, "b"), b"127.0.0.1 localhost\n127.0.1.1\tb\n");
    }
}
