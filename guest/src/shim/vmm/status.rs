//! Waiting for a machine to be in a state of which no event tells.

use super::qmp::{Failure, Qmp};
use serde::Deserialize;
use serde_json::Value;
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_micros(100);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AwaitStatus {
    /// As `query-status` says them.
    values: Vec<String>,
}

impl AwaitStatus {
    pub fn run(&self, qmp: &mut Qmp, deadline: Instant) -> Result<Value, Failure> {
        loop {
            let status = qmp.execute("query-status", None, None, deadline)?;
            if status["status"].as_str().is_some_and(|status| self.values.iter().any(|value| value == status)) {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                return Err(Failure::new(format!("the machine stays in status {}", status["status"])));
            }
            std::thread::sleep(PAUSE);
        }
    }
}
