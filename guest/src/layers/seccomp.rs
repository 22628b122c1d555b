//! The system calls that are left: those for files that are opened by handle, memory, and an orderly end. No network, no programs, no other
//! processes, no namespaces.

use super::failure::{Failure, Result};
use std::mem::offset_of;

const ALLOWED: &[libc::c_long] = &[
    // Reading and writing what is open.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_lseek,
    libc::SYS_ftruncate,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_ppoll,
    libc::SYS_fsync,
    libc::SYS_syncfs,
    // Files and folders.
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_mkdirat,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fchmod,
    libc::SYS_utimensat,
    libc::SYS_fsetxattr,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    // Memory, time, randomness (for hash maps), and the end of the process, a panic's too.
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_clock_gettime,
    libc::SYS_getrandom,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

// Of linux/audit.h, which the libc crate does not have: the number of the machine, 64 bits, little-endian.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 62 | 0x8000_0000 | 0x4000_0000;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 183 | 0x8000_0000 | 0x4000_0000;

/// For good. Needs no_new_privs. Other calls fail with EPERM.
pub fn allow_only_files() -> Result<()> {
    let refused = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let mut program = vec![
        load(offset_of!(libc::seccomp_data, arch)),
        // Numbers mean something else to another architecture's calls.
        jump_if_equal(ARCHITECTURE, 1, 0),
        answer(libc::SECCOMP_RET_KILL_PROCESS),
        load(offset_of!(libc::seccomp_data, nr)),
    ];
    for (at, call) in ALLOWED.iter().enumerate() {
        // Over those that follow, and the refusal.
        program.push(jump_if_equal(*call as u32, (ALLOWED.len() - at) as u8, 0));
    }
    program.push(answer(refused));
    program.push(answer(libc::SECCOMP_RET_ALLOW));
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the program and its length belong together and outlive the call, which copies them.
    if unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &filter) } != 0 {
        return Err(Failure::system("restrict the system calls", nix::Error::last()));
    }
    Ok(())
}

fn load(offset: usize) -> libc::sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset as u32, 0, 0)
}

fn jump_if_equal(value: u32, if_equal: u8, else_: u8) -> libc::sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, if_equal, else_)
}

fn answer(value: u32) -> libc::sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, value, 0, 0)
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_programs_processes_and_namespaces_are_refused() {
        // A filter holds for the thread that sets it.
        let checks = std::thread::spawn(|| {
            nix::sys::prctl::set_no_new_privs().unwrap();
            allow_only_files().unwrap();
            let path = c"/proc/self/exe".as_ptr();
            let none: [*const libc::c_char; 1] = [std::ptr::null()];
            // SAFETY: each is refused before the kernel looks at its arguments, which are valid all the same.
            let answers = unsafe {
                [
                    i64::from(libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0)),
                    i64::from(libc::execve(path, none.as_ptr(), none.as_ptr())),
                    libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0),
                    i64::from(libc::kill(libc::getpid(), 0)),
                    i64::from(libc::unshare(libc::CLONE_NEWUSER)),
                    i64::from(libc::chroot(c"/".as_ptr())),
                    libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0),
                ]
            };
            (answers, nix::Error::last(), std::fs::File::open("/proc/self/exe").is_ok())
        });
        let (answers, error, can_open) = checks.join().unwrap();
        assert_eq!(answers, [-1; 7]);
        assert_eq!(error, nix::Error::EPERM);
        assert!(can_open);
    }
}
