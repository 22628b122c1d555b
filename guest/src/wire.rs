//! Frames of the link (docs/link.md): ten bytes of header, then at most 65,536 bytes of payload.

pub const HEADER_BYTES: usize = 10;
pub const PAYLOAD_BYTES_MAX: usize = 65_536;
pub const FLAG_MORE: u8 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameType {
    Hello = 0x01,
    HelloAck = 0x02,
    Quiesce = 0x03,
    Quiesced = 0x04,
    Resume = 0x05,
    Adopt = 0x06,
    Adopted = 0x07,
    Ping = 0x08,
    Pong = 0x09,
    Open = 0x10,
    Data = 0x11,
    End = 0x12,
    Reset = 0x13,
    Credit = 0x14,
    ShimRequest = 0x80,
    ShimReply = 0x81,
    ShimEvent = 0x82,
}

impl FrameType {
    pub fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0x01 => Self::Hello,
            0x02 => Self::HelloAck,
            0x03 => Self::Quiesce,
            0x04 => Self::Quiesced,
            0x05 => Self::Resume,
            0x06 => Self::Adopt,
            0x07 => Self::Adopted,
            0x08 => Self::Ping,
            0x09 => Self::Pong,
            0x10 => Self::Open,
            0x11 => Self::Data,
            0x12 => Self::End,
            0x13 => Self::Reset,
            0x14 => Self::Credit,
            0x80 => Self::ShimRequest,
            0x81 => Self::ShimReply,
            0x82 => Self::ShimEvent,
            _ => return None,
        })
    }

    /// Frames between server and shim, which never reach a machine.
    pub fn is_shim(self) -> bool {
        self as u8 >= 0x80
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub length: usize,
    pub kind: FrameType,
    pub more: bool,
    pub channel: u32,
}

/// What is wrong with a header; it ends the link session.
#[derive(Debug, PartialEq, Eq)]
pub enum HeaderError {
    TooLong(u32),
    UnknownType(u8),
    UnknownFlags(u8),
}

impl Header {
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, HeaderError> {
        let length = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        if length as usize > PAYLOAD_BYTES_MAX {
            return Err(HeaderError::TooLong(length));
        }
        let kind = FrameType::from_byte(bytes[4]).ok_or(HeaderError::UnknownType(bytes[4]))?;
        let flags = bytes[5];
        if flags & !FLAG_MORE != 0 {
            return Err(HeaderError::UnknownFlags(flags));
        }
        let channel = u32::from_be_bytes([bytes[6], bytes[7], bytes[8], bytes[9]]);
        Ok(Self { length: length as usize, kind, more: flags & FLAG_MORE != 0, channel })
    }

    pub fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&(self.length as u32).to_be_bytes());
        bytes[4] = self.kind as u8;
        bytes[5] = if self.more { FLAG_MORE } else { 0 };
        bytes[6..].copy_from_slice(&self.channel.to_be_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_encoding() {
        let header = Header { length: 65_536, kind: FrameType::Data, more: true, channel: 0xdead_beef };
        assert_eq!(Header::parse(&header.encode()), Ok(header));
    }

    #[test]
    fn a_header_that_breaks_a_rule_is_refused() {
        let good = Header { length: 0, kind: FrameType::Data, more: false, channel: 2 }.encode();
        let with = |index: usize, value: u8| {
            let mut bytes = good;
            bytes[index] = value;
            Header::parse(&bytes)
        };
        assert_eq!(with(0, 1), Err(HeaderError::TooLong(1 << 24)));
        assert_eq!(with(4, 0x7f), Err(HeaderError::UnknownType(0x7f)));
        assert_eq!(with(5, 2), Err(HeaderError::UnknownFlags(2)));
    }
}
