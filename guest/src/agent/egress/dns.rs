//! The name server of the sandbox, on its own loopback: it knows the names that may be reached, and refuses all others.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use super::gate::{Gate, Refusal, RefusalKind};
use super::names::Names;

const PORT: u16 = 53;
const MESSAGE_BYTES_MAX: usize = 4096;
/// What every client takes over UDP.
const ANSWER_BYTES_MAX: usize = 512;
const QUERIES_AT_ONCE: usize = 64;
const QUERIES_PER_CONNECTION: usize = 64;
const SILENCE: Duration = Duration::from_secs(10);
const TTL_SECONDS: u32 = 60;

const HEADER_BYTES: usize = 12;
const NAME_BYTES_MAX: usize = 255;
const TYPE_A: u16 = 1;
const TYPE_OPT: u16 = 41;
const CLASS_IN: u16 = 1;
const FORMAT_ERROR: u8 = 1;
const SERVER_FAILURE: u8 = 2;
const NO_SUCH_NAME: u8 = 3;
const NOT_IMPLEMENTED: u8 = 4;
const REFUSED: u8 = 5;
/// RFC 8914: extended DNS error 18, prohibited; its text says why.
const EXTENDED_ERROR: u16 = 15;
const PROHIBITED: u16 = 18;

pub async fn serve<G: Gate>(names: Names<G>) {
    tokio::join!(serve_udp(names.clone()), serve_tcp(names));
}

async fn serve_udp<G: Gate>(names: Names<G>) {
    let socket = match UdpSocket::bind((Ipv4Addr::LOCALHOST, PORT)).await {
        Ok(socket) => Arc::new(socket),
        Err(error) => return eprintln!("egress: cannot answer names: {error}"),
    };
    let slots = Arc::new(Semaphore::new(QUERIES_AT_ONCE));
    let mut buffer = vec![0; MESSAGE_BYTES_MAX];
    loop {
        let Ok((count, from)) = socket.recv_from(&mut buffer).await else {
            tokio::time::sleep(super::ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let (query, names, socket) = (buffer[..count].to_vec(), names.clone(), socket.clone());
        tokio::spawn(async move {
            if let Some(answer) = answer(&query, &names).await {
                let _ = socket.send_to(&answer, from).await;
            }
            drop(slot);
        });
    }
}

async fn serve_tcp<G: Gate>(names: Names<G>) {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)).await {
        Ok(listener) => {
            let slots = Arc::new(Semaphore::new(QUERIES_AT_ONCE));
            super::accept(listener, slots, move |stream| serve_connection(stream, names.clone())).await;
        }
        Err(error) => eprintln!("egress: cannot answer names over TCP: {error}"),
    }
}

async fn serve_connection<G: Gate>(mut stream: TcpStream, names: Names<G>) {
    for _ in 0..QUERIES_PER_CONNECTION {
        let exchange = async {
            let length = usize::from(stream.read_u16().await.ok()?);
            let mut query = vec![0; length];
            stream.read_exact(&mut query).await.ok()?;
            let answer = answer(&query, &names).await?;
            let framed = [&(answer.len() as u16).to_be_bytes()[..], &answer].concat();
            stream.write_all(&framed).await.ok()
        };
        if !matches!(tokio::time::timeout(SILENCE, exchange).await, Ok(Some(()))) {
            return;
        }
    }
}

/// The answer to a message; `None` to what is no query, so that two servers cannot answer each other for ever.
async fn answer<G: Gate>(message: &[u8], names: &Names<G>) -> Option<Vec<u8>> {
    let query = match Query::parse(message)? {
        Ok(query) => query,
        Err(code) => return Some(refusal_without_question(message, code)),
    };
    if query.class != CLASS_IN {
        return Some(query.answer(REFUSED, None, ""));
    }
    let reverse = query.name == "arpa" || query.name.ends_with(".arpa");
    if reverse || query.name.is_empty() {
        return Some(query.answer(NO_SUCH_NAME, None, ""));
    }
    // A name that has an address has no other record: an empty answer, so that IPv6 is not waited for.
    Some(match names.look_up(&query.name).await {
        Ok(address) => query.answer(0, Some(address).filter(|_| query.kind == TYPE_A), ""),
        Err(Refusal { kind, message }) => match kind {
            RefusalKind::Denied => query.answer(REFUSED, None, &message),
            RefusalKind::Invalid => query.answer(NO_SUCH_NAME, None, &message),
            RefusalKind::TooMany | RefusalKind::Unavailable => query.answer(SERVER_FAILURE, None, &message),
        },
    })
}

struct Query<'a> {
    message: &'a [u8],
    /// Lower case, without a dot at its end.
    name: String,
    kind: u16,
    class: u16,
    question_end: usize,
    /// The client takes an OPT record, which can say why.
    extended: bool,
}

impl<'a> Query<'a> {
    /// `None` for what is no query; an error code for one that cannot be served.
    fn parse(message: &'a [u8]) -> Option<Result<Self, u8>> {
        let header = message.get(..HEADER_BYTES)?;
        let is_response = header[2] & 0x80 != 0;
        if is_response {
            return None;
        }
        if header[2] & 0x78 != 0 {
            return Some(Err(NOT_IMPLEMENTED));
        }
        Some(Self::parse_question(message).ok_or(FORMAT_ERROR))
    }

    fn parse_question(message: &'a [u8]) -> Option<Self> {
        let count = |at: usize| u16_at(message, at);
        if (count(4)?, count(6)?, count(8)?) != (1, 0, 0) {
            return None;
        }
        let mut labels: Vec<String> = Vec::new();
        let mut at = HEADER_BYTES;
        loop {
            let length = usize::from(*message.get(at)?);
            at += 1;
            if length == 0 {
                break;
            }
            // Above 63 it would be a pointer, and there is nothing to point to.
            if length > 63 || at + length - HEADER_BYTES >= NAME_BYTES_MAX {
                return None;
            }
            let label = message.get(at..at + length)?;
            // A dot within a label would make another name of it.
            if !label.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'.') {
                return None;
            }
            labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
            at += length;
        }
        let (kind, class) = (u16_at(message, at)?, u16_at(message, at + 2)?);
        let question_end = at + 4;
        let extended = count(10)? > 0 && message.get(question_end) == Some(&0) && u16_at(message, question_end + 1) == Some(TYPE_OPT);
        Some(Self { message, name: labels.join("."), kind, class, question_end, extended })
    }

    fn answer(&self, code: u8, address: Option<Ipv4Addr>, why: &str) -> Vec<u8> {
        let mut out = header(self.message, code, [1, u16::from(address.is_some()), 0, u16::from(self.extended)]);
        out.extend_from_slice(&self.message[HEADER_BYTES..self.question_end]);
        if let Some(address) = address {
            // The name is that of the question.
            out.extend_from_slice(&[0xc0, HEADER_BYTES as u8]);
            out.extend_from_slice(&TYPE_A.to_be_bytes());
            out.extend_from_slice(&CLASS_IN.to_be_bytes());
            out.extend_from_slice(&TTL_SECONDS.to_be_bytes());
            out.extend_from_slice(&4_u16.to_be_bytes());
            out.extend_from_slice(&address.octets());
        }
        if self.extended {
            let room = ANSWER_BYTES_MAX.saturating_sub(out.len() + 11 + 6);
            let text: Vec<u8> = why.bytes().filter(u8::is_ascii).take(room).collect();
            let option = if why.is_empty() {
                Vec::new()
            } else {
                let length = text.len() as u16 + 2;
                [&EXTENDED_ERROR.to_be_bytes()[..], &length.to_be_bytes(), &PROHIBITED.to_be_bytes(), &text].concat()
            };
            out.push(0);
            out.extend_from_slice(&TYPE_OPT.to_be_bytes());
            out.extend_from_slice(&(MESSAGE_BYTES_MAX as u16).to_be_bytes());
            out.extend_from_slice(&[0; 4]);
            out.extend_from_slice(&(option.len() as u16).to_be_bytes());
            out.extend_from_slice(&option);
        }
        out
    }
}

fn refusal_without_question(message: &[u8], code: u8) -> Vec<u8> {
    header(message, code, [0; 4])
}

/// Of a response to `message`: recursion was available if it was desired.
fn header(message: &[u8], code: u8, counts: [u16; 4]) -> Vec<u8> {
    let mut out = vec![message[0], message[1], 0x80 | (message[2] & 0x79), 0x80 | code];
    out.extend(counts.iter().flat_map(|count| count.to_be_bytes()));
    out
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::super::gate::{Connection, Ports};
    use super::*;

    #[derive(Clone)]
    struct OneName;

    impl Gate for OneName {
        async fn connect(&self, _host: &str, _port: u16) -> Result<Connection, Refusal> {
            Err(Refusal::new(RefusalKind::Unavailable, "not here"))
        }

        async fn ports(&self, name: &str) -> Result<Ports, Refusal> {
            match name {
                "a.example" => Ok(Ports::These(Vec::new())),
                "no host" => Err(Refusal::new(RefusalKind::Unavailable, "the connection to the host was lost")),
                _ => Err(Refusal::new(RefusalKind::Denied, format!("egress to {name} is denied: no rule allows it"))),
            }
        }
    }

    fn query(name: &str, kind: u16, extended: bool) -> Vec<u8> {
        let mut message = vec![7, 8, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(extended)];
        for label in name.split('.').filter(|label| !label.is_empty()) {
            message.push(label.len() as u8);
            message.extend_from_slice(label.as_bytes());
        }
        message.push(0);
        message.extend_from_slice(&kind.to_be_bytes());
        message.extend_from_slice(&CLASS_IN.to_be_bytes());
        if extended {
            message.extend_from_slice(&[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
        }
        message
    }

    async fn ask(message: &[u8]) -> Option<Vec<u8>> {
        answer(message, &Names::new(OneName, Arc::new(Semaphore::new(1)))).await
    }

    fn code(answer: Option<Vec<u8>>) -> Option<u8> {
        answer.map(|answer| answer[3] & 0x0f)
    }

    #[tokio::test]
    async fn an_allowed_name_has_one_address_and_no_other_record() {
        let sent = query("A.Example", TYPE_A, false);
        let found = ask(&sent).await.unwrap();
        assert_eq!(found[..12], [7, 8, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        assert_eq!(found[12..sent.len()], sent[12..]);
        assert_eq!(found[sent.len()..], [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 64, 0, 1]);
        for kind in [28, 65, 16] {
            let found = ask(&query("a.example", kind, false)).await.unwrap();
            assert_eq!((found[3] & 0x0f, found[7]), (0, 0), "{kind}");
        }
    }

    #[tokio::test]
    async fn a_name_without_a_rule_is_refused_with_the_reason_for_who_can_read_it() {
        let found = ask(&query("b.example", TYPE_A, true)).await.unwrap();
        assert_eq!(found[3] & 0x0f, REFUSED);
        let text = b"egress to b.example is denied: no rule allows it";
        assert_eq!(found[found.len() - text.len()..], text[..]);
        assert_eq!(found[found.len() - text.len() - 6..found.len() - text.len()], [0, 15, 0, text.len() as u8 + 2, 0, 18]);
        assert_eq!(code(ask(&query("b.example", 28, false)).await), Some(REFUSED));
    }

    #[tokio::test]
    async fn an_answer_fits_into_a_datagram_however_long_the_name_is() {
        let name = vec!["x".repeat(60); 4].join(".");
        assert!(ask(&query(&name, TYPE_A, true)).await.is_some_and(|answer| answer.len() <= ANSWER_BYTES_MAX));
    }

    #[tokio::test]
    async fn reverse_names_do_not_exist() {
        assert_eq!(code(ask(&query("1.0.64.127.in-addr.arpa", 12, false)).await), Some(NO_SUCH_NAME));
        assert_eq!(code(ask(&query("", TYPE_A, false)).await), Some(NO_SUCH_NAME));
    }

    #[tokio::test]
    async fn messages_that_break_the_rules_get_an_error_or_nothing() {
        let good = query("a.example", TYPE_A, true);
        let with = |at: usize, byte: u8| {
            let mut message = good.clone();
            message[at] = byte;
            message
        };
        assert_eq!(ask(&with(2, 0x81)).await, None);
        assert_eq!(code(ask(&with(2, 0x28)).await), Some(NOT_IMPLEMENTED));
        for (at, byte) in [(5, 0), (5, 2), (7, 1), (12, 0xc0), (12, 200), (13, b'.'), (13, 0), (13, 0xff)] {
            assert_eq!(code(ask(&with(at, byte)).await), Some(FORMAT_ERROR), "{at} {byte}");
        }
        for length in 0..good.len() {
            let found = ask(&good[..length]).await;
            assert_eq!(found.is_none(), length < HEADER_BYTES, "{length}");
        }
        let long = query(&vec!["x".repeat(63); 4].join("."), TYPE_A, false);
        assert_eq!(code(ask(&long).await), Some(FORMAT_ERROR));
    }

    #[tokio::test]
    async fn arbitrary_bytes_never_make_it_panic() {
        let mut seed = 0x9e37_79b9_u32;
        for _ in 0..20_000 {
            let bytes: Vec<u8> = (0..seed % 80)
                .map(|_| {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (seed >> 24) as u8
                })
                .collect();
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let _ = ask(&bytes).await;
        }
    }
}
