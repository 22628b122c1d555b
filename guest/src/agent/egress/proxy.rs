//! One connection of a program to the proxy: SOCKS5, HTTP CONNECT, or a plain HTTP request to forward.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::gate::{Gate, Refusal, RefusalKind, relay};
use super::http::{self, BadRequest, Request};
use super::socks;

const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

pub async fn serve(mut stream: TcpStream, gate: impl Gate) {
    let first = match tokio::time::timeout(http::HEAD_TIMEOUT, stream.read_u8()).await {
        Ok(Ok(byte)) => byte,
        _ => return,
    };
    if first == socks::VERSION {
        serve_socks(stream, gate).await;
    } else {
        serve_http(stream, gate, first).await;
    }
}

async fn serve_socks(mut stream: TcpStream, gate: impl Gate) {
    let Some((host, port)) = socks::handshake(&mut stream).await else { return close(stream).await };
    let Some(connected) = or_gone(&mut stream, gate.connect(&host, port)).await else { return };
    match connected {
        Ok(connection) => {
            if socks::reply(&mut stream, socks::SUCCEEDED).await.is_ok() {
                relay(stream, connection, Vec::new()).await;
            }
        }
        Err(refusal) => {
            let _ = socks::reply(&mut stream, socks::code_of(refusal.kind)).await;
            close(stream).await;
        }
    }
}

async fn serve_http(mut stream: TcpStream, gate: impl Gate, first: u8) {
    let (head, rest) = match http::read_head(&mut stream, vec![first]).await {
        Ok(read) => read,
        Err(error) => return refuse(stream, &refusal_of(error)).await,
    };
    let (host, port, answer, sent) = match http::parse(&head) {
        Ok(Request::Tunnel { host, port }) => (host, port, ESTABLISHED, rest),
        Ok(Request::Forward { host, port, head }) => (host, port, &b""[..], [head, rest].concat()),
        Err(error) => return refuse(stream, &refusal_of(error)).await,
    };
    let Some(connected) = or_gone(&mut stream, gate.connect(&host, port)).await else { return };
    let connection = match connected {
        Ok(connection) => connection,
        Err(refusal) => return refuse(stream, &refusal).await,
    };
    if stream.write_all(answer).await.is_ok() {
        relay(stream, connection, sent).await;
    }
}

/// Waits for the gate as long as the program does. What it sends meanwhile stays in the socket.
async fn or_gone<T>(stream: &mut TcpStream, connecting: impl Future<Output = T>) -> Option<T> {
    let gone = async {
        let mut byte = [0];
        // A half-closed program still listens, and one that has sent something is there.
        if stream.peek(&mut byte).await.is_ok() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        biased;
        result = connecting => Some(result),
        () = gone => None,
    }
}

fn refusal_of(error: BadRequest) -> Refusal {
    let message = match error {
        BadRequest::TooLong => format!("the head of the request is longer than {} bytes", http::HEAD_BYTES_MAX),
        BadRequest::TooSlow => "the request did not come in time".into(),
        BadRequest::Closed => "the request ended early".into(),
        BadRequest::Malformed(why) => why.into(),
    };
    Refusal::new(RefusalKind::Invalid, message)
}

async fn refuse(mut stream: TcpStream, refusal: &Refusal) {
    let (status, code) = match refusal.kind {
        RefusalKind::Denied => (403, "egress_denied"),
        RefusalKind::Invalid => (400, "invalid_input"),
        RefusalKind::TooMany => (503, "too_many_connections"),
        RefusalKind::Unavailable => (502, "unavailable"),
    };
    if stream.write_all(&http::answer(status, code, &refusal.message)).await.is_ok() {
        close(stream).await;
    }
}

/// Ends the connection so that the last answer is read: closing with unread input would reset it.
async fn close(mut stream: TcpStream) {
    const DRAIN_BYTES_MAX: u64 = 1 << 20;
    if stream.shutdown().await.is_err() {
        return;
    }
    let draining = async {
        let _ = tokio::io::copy(&mut stream.take(DRAIN_BYTES_MAX), &mut tokio::io::sink()).await;
    };
    let _ = tokio::time::timeout(http::HEAD_TIMEOUT, draining).await;
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;

    use super::super::gate::{Connection, Ports};
    use super::*;

    /// Echoes what it is sent, in upper case, and knows one forbidden name.
    #[derive(Clone)]
    struct EchoGate;

    impl Gate for EchoGate {
        async fn connect(&self, host: &str, port: u16) -> Result<Connection, Refusal> {
            if host == "denied.example" {
                return Err(Refusal::new(RefusalKind::Denied, format!("egress to {host}:{port} is denied: no rule allows it")));
            }
            let (outbound, mut sent) = mpsc::channel::<Bytes>(1);
            let (back, inbound) = mpsc::channel(1);
            tokio::spawn(async move {
                while let Some(data) = sent.recv().await {
                    if back.send(Bytes::from(data.to_ascii_uppercase())).await.is_err() {
                        return;
                    }
                }
            });
            Ok(Connection { inbound, outbound, end: None })
        }

        async fn ports(&self, _name: &str) -> Result<Ports, Refusal> {
            Ok(Ports::Any)
        }
    }

    /// Everything that the proxy answers to `input`, after which the program half-closes.
    async fn speak(input: &[u8]) -> Vec<u8> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            serve(stream, EchoGate).await;
        });
        let mut program = TcpStream::connect(address).await.unwrap();
        program.write_all(input).await.unwrap();
        program.shutdown().await.unwrap();
        let mut answered = Vec::new();
        program.read_to_end(&mut answered).await.unwrap();
        answered
    }

    #[tokio::test]
    async fn connect_carries_bytes_both_ways_also_those_sent_with_the_head() {
        let answered = speak(b"CONNECT a.example:443 HTTP/1.1\r\n\r\nhello").await;
        assert_eq!(answered, [ESTABLISHED, b"HELLO"].concat());
    }

    #[tokio::test]
    async fn a_plain_request_is_forwarded_to_its_origin() {
        let answered = speak(b"POST http://a.example/x HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody").await;
        assert_eq!(answered, b"POST /X HTTP/1.1\r\nHOST: A.EXAMPLE\r\nCONTENT-LENGTH: 4\r\nCONNECTION: CLOSE\r\n\r\nBODY");
    }

    #[tokio::test]
    async fn socks_carries_bytes_both_ways() {
        let input = [&[5, 1, 0, 5, 1, 0, 3, 9], &b"a.example"[..], &[1, 187], &b"hi"[..]].concat();
        assert_eq!(speak(&input).await, [&[5, 0, 5, 0, 0, 1, 0, 0, 0, 0, 0, 0], &b"HI"[..]].concat());
    }

    #[tokio::test]
    async fn a_denial_is_a_403_that_names_the_rule_and_in_socks_its_code() {
        let answered = String::from_utf8(speak(b"CONNECT denied.example:443 HTTP/1.1\r\n\r\n").await).unwrap();
        let message = "egress to denied.example:443 is denied: no rule allows it";
        assert!(answered.starts_with(&format!("HTTP/1.1 403 {message}\r\n")), "{answered}");
        assert!(answered.ends_with(&format!("{message}\n")) && answered.contains("X-Mitos-Error: egress_denied"), "{answered}");
        let input = [&[5, 1, 0, 5, 1, 0, 3, 14], &b"denied.example"[..], &[1, 187]].concat();
        assert_eq!(speak(&input).await[2..4], [5, 2]);
    }

    #[tokio::test]
    async fn what_is_neither_http_nor_socks_is_answered_with_400() {
        for input in [&b"\x16\x03\x01\r\n\r\n"[..], b"GET / HTTP/1.1\r\n\r\n", b"\0\r\n\r\n", b"unfinished"] {
            assert!(speak(input).await.starts_with(b"HTTP/1.1 400 "), "{input:?}");
        }
        let long = [b"GET http://a.example/ HTTP/1.1\r\nA: ".to_vec(), vec![b'x'; http::HEAD_BYTES_MAX]].concat();
        assert!(speak(&long).await.starts_with(b"HTTP/1.1 400 the head of the request is longer"));
    }
}
