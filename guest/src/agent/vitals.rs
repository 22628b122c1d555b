//! Processor and memory of the sandbox as a whole.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::call::{Call, Gone, Status, decode};
use super::proctable;
use crate::proto::sandbox::v1 as pb;

const SINGLE_SAMPLE_WINDOW: Duration = Duration::from_millis(100);
const INTERVAL_SECONDS_MAX: i32 = 3600;

/// Interval 0 = one sample, then the end; otherwise one per interval until the caller goes.
pub async fn vitals(first: Bytes, call: Call) -> Result<(), Status> {
    let request: pb::VitalsRequest = decode(first)?;
    if !(0..=INTERVAL_SECONDS_MAX).contains(&request.interval_seconds) {
        return Err(Status::invalid(format!("interval_seconds must be 0 to {INTERVAL_SECONDS_MAX}")));
    }
    let once = request.interval_seconds == 0;
    let interval = Duration::from_secs(request.interval_seconds as u64);
    let mut before = CpuTimes::read();
    let mut window = SINGLE_SAMPLE_WINDOW;
    loop {
        tokio::select! {
            biased;
            () = call.cancelled.cancelled() => return Err(Gone.into()),
            () = tokio::time::sleep(window) => {}
        }
        let now = CpuTimes::read();
        let sample = tokio::task::spawn_blocking(move || sample(before, now));
        call.send(&sample.await.map_err(|_| Status::new("internal", "reading /proc was abandoned"))?).await?;
        if once {
            return Ok(());
        }
        (before, window) = (now, interval);
    }
}

fn sample(before: CpuTimes, now: CpuTimes) -> pb::GuestVitals {
    let total = now.total.saturating_sub(before.total);
    let percent = |part: u64| if total == 0 { 0.0 } else { (part as f64 * 100.0 / total as f64).clamp(0.0, 100.0) };
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory_total = meminfo_bytes(&meminfo, "MemTotal:").unwrap_or(0);
    let available = meminfo_bytes(&meminfo, "MemAvailable:").or_else(|| meminfo_bytes(&meminfo, "MemFree:")).unwrap_or(0);
    pb::GuestVitals {
        sampled_at_unix: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64),
        cpu_percent: percent(total.saturating_sub(now.idle.saturating_sub(before.idle))),
        cpu_steal_percent: percent(now.steal.saturating_sub(before.steal)),
        mem_used_bytes: memory_total.saturating_sub(available).max(0),
        mem_total_bytes: memory_total,
        mem_balloon_bytes: 0,
        process_count: proctable::pids().count().min(i32::MAX as usize) as i32,
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct CpuTimes {
    total: u64,
    idle: u64,
    steal: u64,
}

impl CpuTimes {
    fn read() -> Self {
        Self::parse(&std::fs::read_to_string("/proc/stat").unwrap_or_default())
    }

    fn parse(stat: &str) -> Self {
        let line = stat.lines().find(|line| line.starts_with("cpu ")).unwrap_or("");
        let ticks: Vec<u64> = line.split_whitespace().skip(1).map_while(|field| field.parse().ok()).collect();
        let tick = |index: usize| ticks.get(index).copied().unwrap_or(0);
        // user nice system idle iowait irq softirq steal; guest times are within user.
        let total = ticks.iter().take(8).fold(0, |sum: u64, tick| sum.saturating_add(*tick));
        Self { total, idle: tick(3).saturating_add(tick(4)), steal: tick(7) }
    }
}

fn meminfo_bytes(meminfo: &str, key: &str) -> Option<i64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse::<i64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_busy_second_is_half_the_processor() {
        let before = CpuTimes::parse("cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 1 2 3\n");
        let now = CpuTimes::parse("cpu  140 0 105 845 5 0 0 5 9 9\n");
        assert_eq!(now.total - before.total, 100);
        let vitals = sample(before, now);
        assert_eq!((vitals.cpu_percent, vitals.cpu_steal_percent), (50.0, 5.0));
    }

    #[test]
    fn missing_figures_are_zero() {
        assert_eq!(CpuTimes::parse(""), CpuTimes::default());
        assert_eq!(meminfo_bytes("MemTotal:   2048 kB\n", "MemTotal:"), Some(2_097_152));
        assert_eq!(meminfo_bytes("", "MemTotal:"), None);
    }
}
