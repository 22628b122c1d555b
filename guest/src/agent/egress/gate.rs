//! The host's gate as the agent sees it: ask for a connection, then carry bytes.

use bytes::Bytes;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::agent::session::{CallError, HostEnd, Link, Refused};
use crate::proto::guest::v1 as pb;

const CHUNK_BYTES_MAX: usize = 32 * 1024;
const MESSAGE_BYTES_MAX: usize = 1024;

/// Why there is no connection: the host's code and its words for the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub kind: RefusalKind,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    /// The policy says no.
    Denied,
    /// The name or the address makes no sense.
    Invalid,
    TooMany,
    /// It was allowed, but nothing answered.
    Unavailable,
}

impl Refusal {
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

impl From<CallError> for Refusal {
    fn from(error: CallError) -> Self {
        let CallError::Refused(Refused { code, message, .. }) = error else {
            return Self::new(RefusalKind::Unavailable, "the connection to the host was lost");
        };
        let kind = match code.as_str() {
            "permission_denied" => RefusalKind::Denied,
            "invalid_argument" => RefusalKind::Invalid,
            "resource_exhausted" => RefusalKind::TooMany,
            _ => RefusalKind::Unavailable,
        };
        // It becomes part of a line of a protocol.
        let message = message.chars().filter(|character| !character.is_control()).take(MESSAGE_BYTES_MAX).collect();
        Self { kind, message }
    }
}

/// What a look-up opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ports {
    Any,
    These(Vec<u16>),
}

/// Where connections are asked for. The real one is the link; tests bring their own.
pub trait Gate: Clone + Send + Sync + 'static {
    fn connect(&self, host: &str, port: u16) -> impl Future<Output = Result<Connection, Refusal>> + Send;
    fn ports(&self, name: &str) -> impl Future<Output = Result<Ports, Refusal>> + Send;
}

#[derive(Clone)]
pub struct LinkGate {
    link: Link,
}

impl LinkGate {
    pub fn new(link: Link) -> Self {
        Self { link }
    }
}

impl Gate for LinkGate {
    async fn connect(&self, host: &str, port: u16) -> Result<Connection, Refusal> {
        let request = pb::EgressOpen { host: host.into(), port: port.into() };
        let mut stream = self.link.open("Egress", &request, false);
        stream.first().await?;
        let (inbound, outbound, end) = stream.halves();
        Ok(Connection { inbound, outbound, end: Some(end) })
    }

    async fn ports(&self, name: &str) -> Result<Ports, Refusal> {
        let reply = self.link.call("EgressPorts", &pb::EgressPortsRequest { name: name.into() }).await?;
        let undecodable = |_| Refusal::new(RefusalKind::Unavailable, "the host's answer cannot be decoded");
        let pb::EgressPortsReply { ports, any } = pb::EgressPortsReply::decode(reply).map_err(undecodable)?;
        if any {
            return Ok(Ports::Any);
        }
        Ok(Ports::These(ports.into_iter().filter_map(|port| u16::try_from(port).ok()).filter(|port| *port != 0).collect()))
    }
}

/// An open connection through the gate. Dropping it resets it unless both sides have ended.
pub struct Connection {
    pub inbound: mpsc::Receiver<Bytes>,
    pub outbound: mpsc::Sender<Bytes>,
    pub end: Option<HostEnd>,
}

/// Carries bytes both ways until both sides have ended. `sent` goes to the other side first.
pub async fn relay(program: TcpStream, connection: Connection, sent: Vec<u8>) {
    let Connection { mut inbound, outbound, mut end } = connection;
    let (mut from_program, mut to_program) = program.into_split();
    let outwards = async {
        if !sent.is_empty() && outbound.send(sent.into()).await.is_err() {
            return Err(());
        }
        let mut buffer = vec![0; CHUNK_BYTES_MAX];
        loop {
            match from_program.read(&mut buffer).await {
                Ok(0) => break,
                Ok(count) => outbound.send(Bytes::copy_from_slice(&buffer[..count])).await.map_err(|_| ())?,
                Err(_) => return Err(()),
            }
        }
        drop(outbound);
        Ok(())
    };
    let inwards = async {
        while let Some(data) = inbound.recv().await {
            to_program.write_all(&data).await.map_err(|_| ())?;
        }
        if let Some(end) = &mut end {
            end.ended().await.map_err(|_| ())?;
        }
        to_program.shutdown().await.map_err(|_| ())
    };
    if tokio::try_join!(outwards, inwards).is_err()
        && let Ok(program) = from_program.reunite(to_program)
    {
        // Broken, not ended: the program must not take it for the end of the data.
        let _ = program.set_zero_linger();
    }
}
