//! A workaround for one defect of runsc (seen in 20240729): lgetxattr and llistxattr on a symbolic link of the root file system answer
//! EBADF, which makes `ls -l` and `cp -a` complain about every link and fail. Where the defect shows, processes get a seccomp filter in
//! which the two calls answer ENOTSUP, as on a file system without extended attributes.

use std::ffi::CStr;
use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// A link that every root of ours has, and others that those of other runtimes may have.
const PROBED: [&CStr; 4] = [c"/etc/mtab", c"/bin", c"/lib", c"/usr/bin/sh"];

static FILTER: [libc::sock_filter; 7] = [
    // struct seccomp_data: nr at 0, arch at 4.
    load(4),
    jump_if_equal(ARCHITECTURE, 0, 4),
    load(0),
    jump_if_equal(libc::SYS_lgetxattr as u32, 1, 0),
    jump_if_equal(libc::SYS_llistxattr as u32, 0, 1),
    answer(libc::SECCOMP_RET_ERRNO | libc::ENOTSUP as u32),
    answer(libc::SECCOMP_RET_ALLOW),
];

/// The filter to install in every process, or `None` where links answer as they should.
pub fn filter() -> Option<&'static [libc::sock_filter]> {
    static BROKEN: OnceLock<bool> = OnceLock::new();
    BROKEN.get_or_init(|| PROBED.iter().any(|path| answers_bad_descriptor(path))).then_some(&FILTER)
}

/// Installs a filter in the calling thread. Async-signal-safe. Needs CAP_SYS_ADMIN, so it comes before capabilities are dropped.
pub fn install(filter: &[libc::sock_filter]) -> bool {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the program outlives the call, and the kernel only reads it.
    unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0 }
}

fn answers_bad_descriptor(path: &CStr) -> bool {
    // SAFETY: both names are NUL-terminated, and no value is asked for.
    let found = unsafe { libc::lgetxattr(path.as_ptr(), c"security.selinux".as_ptr(), std::ptr::null_mut(), 0) };
    found < 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::EBADF)
}

const fn load(offset: u32) -> libc::sock_filter {
    libc::sock_filter { code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, jt: 0, jf: 0, k: offset }
}

const fn jump_if_equal(value: u32, then: u8, otherwise: u8) -> libc::sock_filter {
    libc::sock_filter { code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, jt: then, jf: otherwise, k: value }
}

const fn answer(verdict: u32) -> libc::sock_filter {
    libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: verdict }
}
