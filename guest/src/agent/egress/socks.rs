//! SOCKS5 (RFC 1928): CONNECT by name or address, without a password.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::gate::RefusalKind;

pub const VERSION: u8 = 5;
const NO_PASSWORD: u8 = 0;
const NO_METHOD: u8 = 0xff;
const CONNECT: u8 = 1;
const GREETING_TIMEOUT: Duration = Duration::from_secs(30);

pub const SUCCEEDED: u8 = 0;
const FAILED: u8 = 1;
const NOT_ALLOWED: u8 = 2;
const HOST_UNREACHABLE: u8 = 4;
const NO_SUCH_COMMAND: u8 = 7;
const NO_SUCH_ADDRESS_TYPE: u8 = 8;

/// Greets and reads where to. `None` when the client was refused, or is gone. The version of the greeting has been read already.
pub async fn handshake(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Option<(String, u16)> {
    tokio::time::timeout(GREETING_TIMEOUT, greet(stream)).await.ok()?.ok()?
}

async fn greet(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> std::io::Result<Option<(String, u16)>> {
    let mut methods = vec![0; usize::from(stream.read_u8().await?)];
    stream.read_exact(&mut methods).await?;
    let method = if methods.contains(&NO_PASSWORD) { NO_PASSWORD } else { NO_METHOD };
    stream.write_all(&[VERSION, method]).await?;
    if method == NO_METHOD {
        return Ok(None);
    }
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    let [version, command, _, kind] = head;
    if version != VERSION {
        return Ok(None);
    }
    let host = match kind {
        1 => {
            let mut bytes = [0; 4];
            stream.read_exact(&mut bytes).await?;
            Ipv4Addr::from(bytes).to_string()
        }
        4 => {
            let mut bytes = [0; 16];
            stream.read_exact(&mut bytes).await?;
            Ipv6Addr::from(bytes).to_string()
        }
        3 => {
            let mut bytes = vec![0; usize::from(stream.read_u8().await?)];
            stream.read_exact(&mut bytes).await?;
            // What is no text is no name: the gate says so.
            String::from_utf8_lossy(&bytes).into_owned()
        }
        _ => {
            reply(stream, NO_SUCH_ADDRESS_TYPE).await?;
            return Ok(None);
        }
    };
    let port = stream.read_u16().await?;
    if command != CONNECT {
        reply(stream, NO_SUCH_COMMAND).await?;
        return Ok(None);
    }
    Ok(Some((host, port)))
}

pub async fn reply(stream: &mut (impl AsyncWrite + Unpin), code: u8) -> std::io::Result<()> {
    stream.write_all(&[VERSION, code, 0, 1, 0, 0, 0, 0, 0, 0]).await
}

pub fn code_of(kind: RefusalKind) -> u8 {
    match kind {
        RefusalKind::Denied => NOT_ALLOWED,
        RefusalKind::Unavailable => HOST_UNREACHABLE,
        RefusalKind::Invalid | RefusalKind::TooMany => FAILED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the handshake answers, and what it makes of the input after the version byte.
    async fn speak(input: &[u8]) -> (Option<(String, u16)>, Vec<u8>) {
        let (mut near, mut far) = tokio::io::duplex(1024);
        let _ = far.write_all(input).await;
        let _ = far.shutdown().await;
        let target = handshake(&mut near).await;
        drop(near);
        let mut answered = Vec::new();
        let _ = far.read_to_end(&mut answered).await;
        (target, answered)
    }

    #[tokio::test]
    async fn names_and_both_kinds_of_addresses_are_understood() {
        let request = |rest: &[u8]| [&[1, 0, 5, 1, 0], rest].concat();
        let named = request(&[&[3, 9], &b"a.example"[..], &[1, 187]].concat());
        assert_eq!(speak(&named).await, (Some(("a.example".into(), 443)), vec![5, 0]));
        assert_eq!(speak(&request(&[1, 10, 0, 0, 1, 0, 80])).await.0, Some(("10.0.0.1".into(), 80)));
        let v6 = request(&[&[4], &[0; 15][..], &[1, 0, 80]].concat());
        assert_eq!(speak(&v6).await.0, Some(("::1".into(), 80)));
    }

    #[tokio::test]
    async fn other_methods_commands_and_address_types_are_refused_by_their_codes() {
        assert_eq!(speak(&[1, 2]).await, (None, vec![5, 0xff]));
        assert_eq!(speak(&[0]).await, (None, vec![5, 0xff]));
        let bind = [1, 0, 5, 2, 0, 1, 1, 2, 3, 4, 0, 80];
        assert_eq!(speak(&bind).await, (None, vec![5, 0, 5, 7, 0, 1, 0, 0, 0, 0, 0, 0]));
        assert_eq!(speak(&[1, 0, 5, 1, 0, 9]).await, (None, vec![5, 0, 5, 8, 0, 1, 0, 0, 0, 0, 0, 0]));
    }

    #[tokio::test]
    async fn a_request_that_is_cut_anywhere_is_given_up() {
        let whole = [&[1, 0, 5, 1, 0, 3, 9], &b"a.example"[..], &[1, 187]].concat();
        for length in 0..whole.len() {
            assert_eq!(speak(&whole[..length]).await.0, None, "{length}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_goes_silent_is_given_up() {
        let (mut near, _far) = tokio::io::duplex(64);
        assert_eq!(handshake(&mut near).await, None);
    }
}
