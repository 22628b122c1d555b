//! The head of a request to an HTTP proxy: read within limits, understood in full, or refused. No I/O but reading.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};

pub const HEAD_BYTES_MAX: usize = 32 * 1024;
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
const HEADERS_MAX: usize = 200;
/// Between client and proxy only; never forwarded.
const HOP_HEADERS: [&str; 6] = ["connection", "proxy-connection", "proxy-authorization", "keep-alive", "te", "upgrade"];

#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// `CONNECT host:port`: raw bytes follow.
    Tunnel { host: String, port: u16 },
    /// `GET http://host:port/path`: `head` is what the upstream gets in its place.
    Forward { host: String, port: u16, head: Vec<u8> },
}

#[derive(Debug, PartialEq, Eq)]
pub enum BadRequest {
    TooLong,
    TooSlow,
    Closed,
    Malformed(&'static str),
}

/// Reads up to the end of the head. Returns the head without the empty line, and what came after it.
pub async fn read_head(stream: &mut (impl AsyncRead + Unpin), start: Vec<u8>) -> Result<(Vec<u8>, Vec<u8>), BadRequest> {
    let reading = async {
        let mut head = start;
        let mut searched = 0;
        loop {
            if let Some(at) = find(&head[searched..], b"\r\n\r\n").map(|at| at + searched) {
                let rest = head.split_off(at + 4);
                head.truncate(at);
                return Ok((head, rest));
            }
            if head.len() >= HEAD_BYTES_MAX {
                return Err(BadRequest::TooLong);
            }
            searched = head.len().saturating_sub(3);
            let mut buffer = [0; 4096];
            match stream.read(&mut buffer).await {
                Ok(count) if count > 0 => head.extend_from_slice(&buffer[..count]),
                _ => return Err(BadRequest::Closed),
            }
        }
    };
    tokio::time::timeout(HEAD_TIMEOUT, reading).await.unwrap_or(Err(BadRequest::TooSlow))
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

pub fn parse(head: &[u8]) -> Result<Request, BadRequest> {
    let malformed = BadRequest::Malformed;
    let text = std::str::from_utf8(head).map_err(|_| malformed("the request is not text"))?;
    let mut lines = text.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next()) else {
        return Err(malformed("the request line is not METHOD TARGET VERSION"));
    };
    if !matches!(version, "HTTP/1.1" | "HTTP/1.0") {
        return Err(malformed("the version is neither HTTP/1.1 nor HTTP/1.0"));
    }
    if method.is_empty() || !method.bytes().all(is_token) {
        return Err(malformed("the method is not a word"));
    }
    if method == "CONNECT" {
        let (host, port) = split_authority(target, None).ok_or(malformed("CONNECT needs host:port"))?;
        return Ok(Request::Tunnel { host, port });
    }
    let rest =
        strip_scheme(target).ok_or(malformed("this is a proxy: the target must be a URL that begins with http://, or use CONNECT"))?;
    let path_at = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(path_at);
    let (host, port) = split_authority(authority, Some(80)).ok_or(malformed("the URL has no usable host"))?;
    let slash = if path.starts_with('/') { "" } else { "/" };
    let mut out = format!("{method} {slash}{path} HTTP/1.1\r\nHost: {authority}\r\n");
    for (index, line) in lines.enumerate() {
        if index >= HEADERS_MAX {
            return Err(malformed("too many header lines"));
        }
        let (name, value) = line.split_once(':').ok_or(malformed("a header line without a colon"))?;
        if name.is_empty() || !name.bytes().all(is_token) || value.bytes().any(|byte| byte == b'\r' || byte == b'\n' || byte == 0) {
            return Err(malformed("a header that is not one"));
        }
        let lower = name.to_ascii_lowercase();
        if lower != "host" && !HOP_HEADERS.contains(&lower.as_str()) {
            out.push_str(line);
            out.push_str("\r\n");
        }
    }
    // One request a connection: what follows it need not be understood.
    out.push_str("Connection: close\r\n\r\n");
    Ok(Request::Forward { host, port, head: out.into_bytes() })
}

fn strip_scheme(target: &str) -> Option<&str> {
    let (scheme, rest) = target.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case("http://").then_some(rest)
}

/// `name`, `1.2.3.4` or `[::1]`, with a port unless there is a default.
fn split_authority(authority: &str, default_port: Option<u16>) -> Option<(String, u16)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']')?;
            (host, if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
        }
        None => match authority.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let port = match port {
        Some(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok()?,
        Some(_) => return None,
        None => default_port?,
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':');
    (port != 0 && !host.is_empty() && host.len() <= 255 && host.bytes().all(plain)).then(|| (host.to_owned(), port))
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A whole answer in plain words. The reason is in the status line too, since many clients show nothing else.
pub fn answer(status: u16, code: &str, message: &str) -> Vec<u8> {
    let reason: String = message.chars().map(|character| if (' '..='~').contains(&character) { character } else { '?' }).collect();
    let body = format!("{message}\n");
    format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nX-Mitos-Error: {code}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forward(head: &str) -> Option<(String, u16, String)> {
        match parse(head.as_bytes()) {
            Ok(Request::Forward { host, port, head }) => Some((host, port, String::from_utf8(head).unwrap_or_default())),
            _ => None,
        }
    }

    #[test]
    fn connect_names_a_host_and_a_port() {
        let tunnel = |target: &str| parse(format!("CONNECT {target} HTTP/1.1\r\nHost: x").as_bytes());
        for (target, host, port) in
            [("a.example:443", "a.example", 443), ("1.2.3.4:80", "1.2.3.4", 80), ("[2001:db8::1]:443", "2001:db8::1", 443)]
        {
            assert_eq!(tunnel(target), Ok(Request::Tunnel { host: host.into(), port }));
        }
        for target in [
            "a.example",
            "a.example:",
            "a.example:0",
            "a.example:65536",
            "a.example:+80",
            ":443",
            "[::1:443",
            "a b:443",
            "a/b:443",
            "u@a:443",
        ] {
            assert!(matches!(tunnel(target), Err(BadRequest::Malformed(_))), "{target}");
        }
    }

    #[test]
    fn a_url_becomes_a_request_to_its_origin_without_what_was_for_the_proxy() {
        let (host, port, head) = forward(
            "GET http://a.example:8080/p?q=1 HTTP/1.1\r\nHost: other.example\r\nProxy-Authorization: Basic x\r\nAccept: */*\r\nConnection: keep-alive",
        )
        .unwrap_or_default();
        assert_eq!((host.as_str(), port), ("a.example", 8080));
        assert_eq!(head, "GET /p?q=1 HTTP/1.1\r\nHost: a.example:8080\r\nAccept: */*\r\nConnection: close\r\n\r\n");
        assert_eq!(
            forward("GET HTTP://a.example HTTP/1.0").map(|found| found.2),
            Some("GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n".into())
        );
        assert_eq!(
            forward("GET http://a.example?x HTTP/1.1").map(|found| found.2.lines().next().map(str::to_owned)),
            Some(Some("GET /?x HTTP/1.1".into()))
        );
    }

    #[test]
    fn what_is_no_request_to_a_proxy_is_refused() {
        for head in [
            "",
            "GET",
            "GET / HTTP/1.1",
            "GET https://a.example/ HTTP/1.1",
            "GET http:///x HTTP/1.1",
            "GET http://a.example/ HTTP/2",
            "GET http://a.example/ HTTP/1.1 x",
            "G\u{e9}T http://a.example/ HTTP/1.1",
            "GET http://user@a.example/ HTTP/1.1",
            "GET http://a.example/ HTTP/1.1\r\nno colon",
            "GET http://a.example/ HTTP/1.1\r\nA: b\nEvil: c",
            "GET http://a.example/ HTTP/1.1\r\n A: folded",
        ] {
            assert!(matches!(parse(head.as_bytes()), Err(BadRequest::Malformed(_))), "{head:?}");
        }
        assert!(matches!(parse(&[0xff, 0xfe]), Err(BadRequest::Malformed(_))));
        let many = format!("GET http://a.example/ HTTP/1.1{}", "\r\nA: b".repeat(HEADERS_MAX + 1));
        assert!(matches!(parse(many.as_bytes()), Err(BadRequest::Malformed(_))));
    }

    #[tokio::test]
    async fn a_head_is_read_however_it_is_cut_and_never_beyond_the_limit() {
        let (mut near, mut far) = tokio::io::duplex(8);
        let writing = tokio::spawn(async move {
            for byte in b"A b\r\n\r\nrest" {
                let _ = tokio::io::AsyncWriteExt::write_all(&mut far, &[*byte]).await;
            }
        });
        let (head, mut rest) = read_head(&mut near, Vec::new()).await.unwrap_or_default();
        let _ = near.read_to_end(&mut rest).await;
        assert_eq!((head.as_slice(), rest.as_slice()), (&b"A b"[..], &b"rest"[..]));
        assert!(writing.await.is_ok());

        let mut endless = tokio::io::repeat(b'x');
        assert_eq!(read_head(&mut endless, Vec::new()).await, Err(BadRequest::TooLong));
        assert_eq!(read_head(&mut tokio::io::empty(), b"half".to_vec()).await, Err(BadRequest::Closed));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_sends_nothing_is_given_up() {
        let (mut near, _far) = tokio::io::duplex(8);
        assert_eq!(read_head(&mut near, Vec::new()).await, Err(BadRequest::TooSlow));
    }

    #[test]
    fn an_answer_says_why_in_its_status_line_and_in_its_body() {
        let text = String::from_utf8(answer(403, "egress_denied", "no rule \u{2014} \"x\"\r\n")).unwrap_or_default();
        assert!(text.starts_with("HTTP/1.1 403 no rule ? \"x\"??\r\nContent-Type"), "{text}");
        assert!(text.ends_with("\r\n\r\nno rule \u{2014} \"x\"\r\n\n"));
    }
}
