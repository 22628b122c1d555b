//! Addresses for names: each name that may be reached gets an address of 127.64.0.0/10 on which the agent listens, so that programs that know
//! no proxy connect to it and come out at the name.
//!
//! The policy is not kept here: every look-up asks the host, and every connection is decided there again.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinHandle;

use super::gate::{Gate, Ports, Refusal, RefusalKind, relay};
use super::{accept, http};

const FIRST: u32 = u32::from_be_bytes([127, 64, 0, 1]);
const LAST: u32 = u32::from_be_bytes([127, 127, 255, 254]);
const NAMES_MAX: usize = 512;
const LISTENERS_PER_NAME_MAX: usize = 64;
/// What is listened on where every port is allowed: a listener needs a number. Others go through the proxy.
const COMMON_PORTS: [u16; 14] = [22, 80, 443, 465, 587, 993, 1433, 3306, 5432, 6379, 8080, 8443, 9418, 27017];

#[derive(Clone)]
pub struct Names<G> {
    gate: G,
    slots: Arc<Semaphore>,
    table: Arc<Mutex<Table>>,
}

#[derive(Default)]
struct Table {
    names: HashMap<String, Mapping>,
    last: u32,
    uses: u64,
}

struct Mapping {
    address: Ipv4Addr,
    used: u64,
    listeners: BTreeMap<u16, JoinHandle<()>>,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // Connections that were accepted are tasks of their own and go on.
        for listener in self.listeners.values() {
            listener.abort();
        }
    }
}

impl<G: Gate> Names<G> {
    pub fn new(gate: G, slots: Arc<Semaphore>) -> Self {
        Self { gate, slots, table: Arc::default() }
    }

    /// The address of a name (lower case, without a dot at its end): the same for as long as it is among the names used last.
    pub async fn look_up(&self, name: &str) -> Result<Ipv4Addr, Refusal> {
        let ports = match self.gate.ports(name).await {
            Ok(Ports::Any) => COMMON_PORTS.to_vec(),
            Ok(Ports::These(ports)) => ports,
            Err(refusal) => {
                self.table.lock().await.names.remove(name);
                return Err(refusal);
            }
        };
        let mut table = self.table.lock().await;
        let mapping = table.mapping(name);
        mapping.listeners.retain(|port, listener| {
            let stays = ports.contains(port);
            if !stays {
                listener.abort();
            }
            stays
        });
        for port in ports.into_iter().take(LISTENERS_PER_NAME_MAX) {
            if !mapping.listeners.contains_key(&port) {
                let listening = TcpListener::bind((mapping.address, port)).await;
                let listener =
                    listening.map_err(|error| Refusal::new(RefusalKind::Unavailable, format!("cannot listen for {name}: {error}")))?;
                let (gate, name) = (self.gate.clone(), name.to_owned());
                let serve = move |stream| serve(stream, gate.clone(), name.clone(), port);
                mapping.listeners.insert(port, tokio::spawn(accept(listener, self.slots.clone(), serve)));
            }
        }
        Ok(mapping.address)
    }
}

impl Table {
    /// Makes room by forgetting the name that was looked up longest ago.
    fn mapping(&mut self, name: &str) -> &mut Mapping {
        self.uses += 1;
        if !self.names.contains_key(name) && self.names.len() >= NAMES_MAX {
            let oldest = self.names.iter().min_by_key(|(_, mapping)| mapping.used).map(|(name, _)| name.clone());
            oldest.and_then(|oldest| self.names.remove(&oldest));
        }
        let (uses, last) = (self.uses, &mut self.last);
        let mapping = self.names.entry(name.to_owned()).or_insert_with(|| {
            // An address is not used again before four million others were.
            *last = if (FIRST..LAST).contains(last) { *last + 1 } else { FIRST };
            Mapping { address: Ipv4Addr::from(*last), used: uses, listeners: BTreeMap::new() }
        });
        mapping.used = uses;
        mapping
    }
}

async fn serve<G: Gate>(mut stream: TcpStream, gate: G, name: String, port: u16) {
    match gate.connect(&name, port).await {
        Ok(connection) => relay(stream, connection, Vec::new()).await,
        // Where plain HTTP is spoken, the reason can be told.
        Err(refusal) if port == 80 => {
            let status = if refusal.kind == RefusalKind::Denied { 403 } else { 502 };
            let _ = stream.write_all(&http::answer(status, "egress_failed", &refusal.message)).await;
        }
        Err(_) => {
            let _ = stream.set_zero_linger();
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::io::AsyncReadExt;
    use tokio::sync::mpsc;

    use super::super::gate::Connection;
    use super::*;

    /// Allows what ends in `.example`, on one high port, and says where each connection leads.
    #[derive(Clone)]
    struct SayingGate;

    const PORT: u16 = 41_873;

    impl Gate for SayingGate {
        async fn connect(&self, host: &str, port: u16) -> Result<Connection, Refusal> {
            let (outbound, _) = mpsc::channel(1);
            let (back, inbound) = mpsc::channel(1);
            let _ = back.send(Bytes::from(format!("{host}:{port}"))).await;
            Ok(Connection { inbound, outbound, end: None })
        }

        async fn ports(&self, name: &str) -> Result<Ports, Refusal> {
            if name.ends_with(".example") { Ok(Ports::These(vec![PORT])) } else { Err(Refusal::new(RefusalKind::Denied, "no rule")) }
        }
    }

    fn names() -> Names<SayingGate> {
        Names::new(SayingGate, Arc::new(Semaphore::new(8)))
    }

    #[tokio::test]
    async fn a_name_has_an_address_that_leads_to_it_and_that_stays() {
        let names = names();
        let address = names.look_up("a.example").await.unwrap();
        assert_eq!(address.octets()[..2], [127, 64]);
        assert_ne!(names.look_up("b.example").await, Ok(address));
        assert_eq!(names.look_up("a.example").await, Ok(address));
        let mut said = String::new();
        TcpStream::connect((address, PORT)).await.unwrap().read_to_string(&mut said).await.unwrap();
        assert_eq!(said, format!("a.example:{PORT}"));
    }

    #[tokio::test]
    async fn a_name_without_a_rule_has_no_address() {
        assert_eq!(names().look_up("a.test").await.map_err(|refusal| refusal.kind), Err(RefusalKind::Denied));
    }

    #[test]
    fn the_table_forgets_the_name_that_was_used_longest_ago() {
        let mut table = Table::default();
        let first = table.mapping("first").address;
        for index in 1..NAMES_MAX {
            table.mapping(&format!("n{index}"));
        }
        assert_eq!(table.mapping("first").address, first);
        table.mapping("one more");
        assert_eq!(table.names.len(), NAMES_MAX);
        assert!(table.names.contains_key("first") && !table.names.contains_key("n1"));
    }
}
