//! The timers of processors in the state of a machine's devices. Under emulation, what a kernel does when its clock ticks costs a machine that has just been
//! restored some milliseconds, since nothing of it has been translated yet; and the tick is due at once. It comes later here, as an interrupt may: when the
//! machine has answered.
//!
//! The section is that of `hw/intc/apic_common.c` of QEMU, version 3. What is taken for one has to fit together, or stays as it is.

use std::ops::Range;
use std::time::Duration;

/// A full section: its kind, its number, its name.
const KIND: u8 = 0x04;
const NAME: &[u8] = b"\x04apic";
/// Instance and version.
const VERSION_AT: usize = 4;
const VERSION: u32 = 3;
/// From the version's end on.
const COUNT_SHIFT: usize = 149;
const INITIAL_COUNT: usize = 153;
const LOADED_AT: usize = 157;
const NEXT_AT: usize = 165;
const EXPIRES_AT: usize = 173;
const BYTES: usize = 181;
/// No timer runs.
const NEVER: i64 = -1;

/// Lets each timer that runs come so much later; how many there were.
pub fn postpone(devices: &mut [u8], time: Duration) -> usize {
    let nanoseconds = i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
    let running = running_timers(devices);
    for at in &running {
        let expires = number(devices, at.clone()).saturating_add(nanoseconds);
        devices[at.clone()].copy_from_slice(&expires.to_be_bytes());
    }
    running.len()
}

/// Where their expiry stands.
fn running_timers(devices: &[u8]) -> Vec<Range<usize>> {
    let names = devices.windows(NAME.len()).enumerate().filter(|(_, window)| *window == NAME);
    names.filter_map(|(at, _)| expiry_of(devices, at)).collect()
}

fn expiry_of(devices: &[u8], name_at: usize) -> Option<Range<usize>> {
    let kind = *devices.get(name_at.checked_sub(5)?)?;
    let head = name_at + NAME.len();
    let version = u32::from_be_bytes(devices.get(head + VERSION_AT..head + VERSION_AT + 4)?.try_into().ok()?);
    let start = head + VERSION_AT + 4;
    devices.get(start..start + BYTES)?;
    let long = |at: usize| number(devices, start + at..start + at + 8);
    let word = |at: usize| u32::from_be_bytes(devices[start + at..start + at + 4].try_into().expect("four bytes"));
    let expires = long(EXPIRES_AT);
    let ticks = (i64::from(word(INITIAL_COUNT)) + 1).checked_shl(word(COUNT_SHIFT))?;
    let fits = kind == KIND && version == VERSION && expires == long(NEXT_AT) && Some(expires) == long(LOADED_AT).checked_add(ticks);
    (fits && expires != NEVER).then_some(start + EXPIRES_AT..start + BYTES)
}

fn number(bytes: &[u8], at: Range<usize>) -> i64 {
    i64::from_be_bytes(bytes[at].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATER: Duration = Duration::from_millis(50);

    /// A processor whose timer was loaded with `count` at `loaded`, and expires when it says.
    fn section(loaded: i64, count: u32, expires: i64, version: u32) -> Vec<u8> {
        let mut bytes = vec![KIND, 0, 0, 0, 7];
        bytes.extend(NAME);
        bytes.extend(0_u32.to_be_bytes());
        bytes.extend(version.to_be_bytes());
        let start = bytes.len();
        bytes.resize(start + BYTES, 0);
        bytes[start + COUNT_SHIFT..][..4].copy_from_slice(&4_u32.to_be_bytes());
        bytes[start + INITIAL_COUNT..][..4].copy_from_slice(&count.to_be_bytes());
        for (at, value) in [(LOADED_AT, loaded), (NEXT_AT, expires), (EXPIRES_AT, expires)] {
            bytes[start + at..][..8].copy_from_slice(&value.to_be_bytes());
        }
        bytes.extend([0x7e, 0, 0, 0, 7]);
        bytes
    }

    #[test]
    fn a_running_timer_comes_later_and_nothing_else_changes() {
        let expires = 1_000 + (100 << 4);
        let mut devices =
            [b"before".to_vec(), section(1_000, 99, expires, 3), section(1_000, 99, expires, 3), b"\x04apic".to_vec()].concat();
        assert_eq!(postpone(&mut devices, LATER), 2);
        let mut expected = section(1_000, 99, expires, 3);
        let at = expected.len() - 5 - 8;
        expected[at..at + 8].copy_from_slice(&(expires + 50_000_000).to_be_bytes());
        assert_eq!(devices, [b"before".to_vec(), expected.clone(), expected, b"\x04apic".to_vec()].concat());
    }

    #[test]
    fn what_does_not_fit_together_stays_as_it_is() {
        let expires = 1_000 + (100 << 4);
        let mut shift = section(1_000, 99, expires, 3);
        shift[5 + NAME.len() + 8 + COUNT_SHIFT] = 0xff;
        for devices in [
            section(1_000, 99, NEVER, 3),
            section(1_000, 99, expires + 1, 3),
            section(1_000, 99, expires, 4),
            shift,
            section(1_000, 99, expires, 3)[..100].to_vec(),
            NAME.to_vec(),
            Vec::new(),
        ] {
            let mut changed = devices.clone();
            assert_eq!(postpone(&mut changed, LATER), 0);
            assert_eq!(changed, devices);
        }
    }
}
