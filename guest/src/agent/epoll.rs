//! A workaround for one defect of runsc (20240729; mended upstream later): after a restore, epoll_wait reports interests that had been
//! removed before the snapshot. The runtime takes an event's data for a pointer to what it waits with, which is freed memory by then.
//!
//! So the kernel never sees such a pointer. These definitions of epoll_ctl and epoll_wait take the place of libc's, give every interest a
//! number that is used only once, and drop events whose number is not that of a live interest.

use std::collections::HashMap;
use std::ffi::c_int;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Default)]
struct Interests {
    last: u64,
    /// (epoll descriptor, descriptor) → number.
    numbers: Option<HashMap<(c_int, c_int), u64>>,
    /// Number → the caller's data.
    data: Option<HashMap<u64, u64>>,
}

static INTERESTS: Mutex<Interests> = Mutex::new(Interests { last: 0, numbers: None, data: None });

fn interests() -> MutexGuard<'static, Interests> {
    INTERESTS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Interests {
    fn add(&mut self, key: (c_int, c_int), data: u64) -> u64 {
        self.remove(key);
        self.last += 1;
        self.numbers.get_or_insert_default().insert(key, self.last);
        self.data.get_or_insert_default().insert(self.last, data);
        self.last
    }

    fn remove(&mut self, key: (c_int, c_int)) {
        if let Some(number) = self.numbers.get_or_insert_default().remove(&key) {
            self.data.get_or_insert_default().remove(&number);
        }
    }

    fn data_of(&self, number: u64) -> Option<u64> {
        self.data.as_ref()?.get(&number).copied()
    }
}

/// As epoll_ctl(2).
///
/// # Safety
/// `event` is null or points to an event.
#[unsafe(no_mangle)]
unsafe extern "C" fn epoll_ctl(epoll: c_int, operation: c_int, fd: c_int, event: *mut libc::epoll_event) -> c_int {
    let mut interests = interests();
    if operation == libc::EPOLL_CTL_DEL || event.is_null() {
        interests.remove((epoll, fd));
        // SAFETY: the kernel checks its arguments.
        return unsafe { libc::syscall(libc::SYS_epoll_ctl, epoll, operation, fd, event) } as c_int;
    }
    // SAFETY: not null, so it points to an event.
    let mut numbered = unsafe { *event };
    numbered.u64 = interests.add((epoll, fd), numbered.u64);
    // SAFETY: `numbered` is an event of ours.
    let result = unsafe { libc::syscall(libc::SYS_epoll_ctl, epoll, operation, fd, &raw mut numbered) } as c_int;
    if result < 0 {
        interests.remove((epoll, fd));
    }
    result
}

/// As epoll_wait(2), without events of interests that are gone. It may so return 0 before the time-out, as it may anyway.
///
/// # Safety
/// `events` has room for `events_max` events.
#[unsafe(no_mangle)]
unsafe extern "C" fn epoll_wait(epoll: c_int, events: *mut libc::epoll_event, events_max: c_int, timeout_ms: c_int) -> c_int {
    // SAFETY: as promised by the caller; no signal mask.
    let count =
        unsafe { libc::syscall(libc::SYS_epoll_pwait, epoll, events, events_max, timeout_ms, std::ptr::null::<libc::sigset_t>(), 8_usize) }
            as c_int;
    if count <= 0 {
        return count;
    }
    let interests = interests();
    let mut kept = 0;
    for index in 0..count as usize {
        // SAFETY: the kernel has written `count` events.
        unsafe {
            let mut event = *events.add(index);
            if let Some(data) = interests.data_of(event.u64) {
                event.u64 = data;
                *events.add(kept) = event;
                kept += 1;
            }
        }
    }
    kept as c_int
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interest_has_a_number_of_its_own_and_loses_it_when_removed() {
        let mut interests = Interests::default();
        let first = interests.add((3, 7), 0xaaaa);
        assert_eq!(interests.data_of(first), Some(0xaaaa));
        interests.remove((3, 7));
        assert_eq!(interests.data_of(first), None);
        let second = interests.add((3, 7), 0xaaaa);
        assert_ne!(first, second);
        let changed = interests.add((3, 7), 0xbbbb);
        assert_eq!((interests.data_of(second), interests.data_of(changed)), (None, Some(0xbbbb)));
    }

    #[test]
    fn the_runtime_waits_through_these_definitions() {
        let before = interests().last;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut here, mut there) = tokio::net::UnixStream::pair().unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut here, b"x").await.unwrap();
            assert_eq!(tokio::io::AsyncReadExt::read_u8(&mut there).await.unwrap(), b'x');
        });
        assert!(interests().last > before);
    }
}
