//! Writes tars byte by byte: also what no careful writer would.

#[derive(Clone)]
pub struct Entry<'a> {
    pub name: &'a str,
    pub kind: u8,
    pub target: &'a str,
    pub content: Vec<u8>,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: u64,
    /// Of a pax header before it.
    pub records: Vec<(&'a str, Vec<u8>)>,
}

pub fn entry(name: &str, kind: u8) -> Entry<'_> {
    let mode = if kind == b'5' { 0o755 } else { 0o644 };
    Entry { name, kind, target: "", content: Vec::new(), mode, uid: 0, gid: 0, mtime: 1_700_000_000, records: Vec::new() }
}

pub fn file<'a>(name: &'a str, content: &str) -> Entry<'a> {
    Entry { content: content.as_bytes().to_vec(), ..entry(name, b'0') }
}

pub fn folder(name: &str) -> Entry<'_> {
    entry(name, b'5')
}

pub fn symlink<'a>(name: &'a str, target: &'a str) -> Entry<'a> {
    Entry { target, mode: 0o777, ..entry(name, b'2') }
}

pub fn link<'a>(name: &'a str, target: &'a str) -> Entry<'a> {
    Entry { target, ..entry(name, b'1') }
}

pub fn with<'a>(entry: Entry<'a>, key: &'a str, value: impl Into<Vec<u8>>) -> Entry<'a> {
    let mut entry = entry;
    entry.records.push((key, value.into()));
    entry
}

pub fn tar(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut tar = open_tar(entries);
    tar.extend([0; 1024]);
    tar
}

/// Without its end.
pub fn open_tar(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut tar = Vec::new();
    for entry in entries {
        if !entry.records.is_empty() {
            let text: Vec<u8> = entry.records.iter().flat_map(|(key, value)| record(key, value)).collect();
            append(&mut tar, &Entry { content: text, ..self::entry("pax", b'x') });
        }
        append(&mut tar, entry);
    }
    tar
}

fn append(tar: &mut Vec<u8>, entry: &Entry<'_>) {
    tar.extend(header(entry, entry.content.len() as u64));
    tar.extend(&entry.content);
    tar.resize(tar.len().next_multiple_of(512), 0);
}

pub fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (rest + 1..).find(|length| *length == rest + length.to_string().len()).unwrap();
    [length.to_string().as_bytes(), b" ", key.as_bytes(), b"=", value, b"\n"].concat()
}

pub fn header(entry: &Entry<'_>, size: u64) -> [u8; 512] {
    let mut block = [0; 512];
    let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
    put(0, entry.name.as_bytes());
    put(100, format!("{:07o}", entry.mode).as_bytes());
    put(108, format!("{:07o}", entry.uid).as_bytes());
    put(116, format!("{:07o}", entry.gid).as_bytes());
    put(124, format!("{size:011o}").as_bytes());
    put(136, format!("{:011o}", entry.mtime).as_bytes());
    put(148, b"        ");
    put(156, &[entry.kind]);
    put(157, entry.target.as_bytes());
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}
