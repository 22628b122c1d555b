//! `machine.log`: what a machine's programs say on stderr, kept to the first and the last 256 KiB.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

const PART_BYTES: u64 = 256 << 10;

pub struct MachineLog {
    file: File,
    length: u64,
    /// Bytes that were cut out between the two parts.
    left_out: u64,
    /// Where the last part begins: behind the first part and the line that tells of the gap.
    tail_start: u64,
}

impl MachineLog {
    pub fn create(path: &str) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        Ok(Self { file, length: 0, left_out: 0, tail_start: PART_BYTES })
    }

    /// The last part may grow to twice its size before the file is cut, so that each byte is moved once on average.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.length)?;
        self.length += bytes.len() as u64;
        if self.length > self.tail_start + 2 * PART_BYTES { self.cut() } else { Ok(()) }
    }

    /// Brings the file down to its two parts.
    pub fn cut(&mut self) -> io::Result<()> {
        if self.length <= self.tail_start + PART_BYTES {
            return Ok(());
        }
        let mut tail = vec![0; PART_BYTES as usize];
        self.file.read_exact_at(&mut tail, self.length - PART_BYTES)?;
        self.left_out += self.length - PART_BYTES - self.tail_start;
        let gap = format!("\n[mitos: {} bytes left out]\n", self.left_out);
        self.file.write_all_at(gap.as_bytes(), PART_BYTES)?;
        self.tail_start = PART_BYTES + gap.len() as u64;
        self.file.write_all_at(&tail, self.tail_start)?;
        self.length = self.tail_start + PART_BYTES;
        self.file.set_len(self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_keeps_its_beginning_and_its_end() {
        let path = std::env::temp_dir().join(format!("mitos-log-{}", std::process::id()));
        let mut log = MachineLog::create(path.to_str().unwrap()).unwrap();
        let mut written = Vec::new();
        for line in 0..200_000 {
            let line = format!("line {line}\n");
            log.append(line.as_bytes()).unwrap();
            written.extend(line.into_bytes());
            assert!(log.length <= 3 * PART_BYTES + 200);
        }
        log.cut().unwrap();
        let kept = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let part = PART_BYTES as usize;
        assert!(kept[..part] == written[..part]);
        assert!(kept[kept.len() - part..] == written[written.len() - part..]);
        let gap = String::from_utf8(kept[part..kept.len() - part].to_vec()).unwrap();
        assert_eq!(gap, format!("\n[mitos: {} bytes left out]\n", written.len() - 2 * part));
    }
}
