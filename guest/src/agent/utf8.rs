//! Output is cut into chunks between characters, so that a client which decodes each chunk by itself sees none broken.

/// How many bytes at the end begin a UTF-8 character and do not end it.
pub fn incomplete_suffix(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let byte = bytes[bytes.len() - back];
        let length = match byte {
            0x80..=0xbf => continue,
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => return 0,
        };
        return if back < length { back } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_character_that_may_still_be_completed_is_held_back() {
        let cases: [(&[u8], usize); 8] = [
            (b"", 0),
            (b"a", 0),
            ("é".as_bytes(), 0),
            (b"a\xc3", 1),
            (b"\xe2\x82", 2),
            (b"\xf0\x9f\x98", 3),
            (b"\xff", 0),
            (b"\x80\x80\x80", 0),
        ];
        for (bytes, expected) in cases {
            assert_eq!(incomplete_suffix(bytes), expected, "{bytes:?}");
        }
    }
}
