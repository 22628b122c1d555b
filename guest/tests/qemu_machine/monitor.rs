//! QEMU's monitor: one JSON object a line.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::BOOT_PATIENCE;

pub struct Monitor {
    stream: BufReader<UnixStream>,
    ready: bool,
}

impl Monitor {
    pub fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(BOOT_PATIENCE)).unwrap();
        Self { stream: BufReader::new(stream), ready: false }
    }

    /// What the command returns; panics when it is refused.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Value {
        if !self.ready {
            self.ready = true;
            assert!(self.line()["QMP"].is_object());
            self.execute("qmp_capabilities", json!({}));
        }
        let request = json!({ "execute": command, "arguments": arguments });
        self.stream.get_mut().write_all(format!("{request}\n").as_bytes()).unwrap();
        loop {
            let answer = self.line();
            if !answer["return"].is_null() {
                return answer["return"].clone();
            }
            assert!(answer["error"].is_null(), "{command}: {answer}");
        }
    }

    /// Asks until the answer is as wanted.
    pub fn until(&mut self, command: &str, wanted: impl Fn(&Value) -> bool) {
        let until = Instant::now() + BOOT_PATIENCE;
        while !wanted(&self.execute(command, json!({}))) {
            assert!(Instant::now() < until, "waited in vain for {command}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }
}
