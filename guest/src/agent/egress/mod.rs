//! The way out of the sandbox for programs: a proxy for those that know one, name look-ups and listeners for those that do not.
//!
//! Everything ends in a stream on the link to the host's gate, which alone decides (docs/network.md). Nothing in here is trusted by it.

mod dns;
mod gate;
mod http;
mod names;
mod proxy;
mod socks;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use self::gate::LinkGate;
use self::names::Names;
use super::paths;
use super::session::Link;

/// HTTP and SOCKS5 on one port: the first byte tells.
pub const PROXY_PORT: u16 = 3128;
const CONNECTIONS_MAX: usize = 256;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What tells programs of the proxy. `ALL_PROXY` names HTTP, which every client knows; SOCKS5 needs an extra package in many.
pub fn environment() -> Vec<(String, String)> {
    let proxy = format!("http://127.0.0.1:{PROXY_PORT}");
    let no_proxy = "localhost,127.0.0.1,::1,127.0.0.0/8".to_owned();
    let mut variables = vec![("NODE_USE_ENV_PROXY".to_owned(), "1".to_owned())];
    for (name, value) in [("HTTP_PROXY", &proxy), ("HTTPS_PROXY", &proxy), ("ALL_PROXY", &proxy), ("NO_PROXY", &no_proxy)] {
        variables.push((name.to_owned(), value.clone()));
        variables.push((name.to_lowercase(), value.clone()));
    }
    variables
}

/// Serves programs for ever. The sockets are made once and are the agent's own, so they outlive every fork.
pub async fn run(link: Link) {
    if paths::test_root().is_some() {
        // Ports of a machine that is not ours.
        return;
    }
    let gate = LinkGate::new(link);
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let names = Names::new(gate.clone(), slots.clone());
    tokio::join!(serve_proxy(gate, slots), dns::serve(names));
}

async fn serve_proxy(gate: LinkGate, slots: Arc<Semaphore>) {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, PROXY_PORT)).await {
        Ok(listener) => accept(listener, slots, move |stream| proxy::serve(stream, gate.clone())).await,
        Err(error) => eprintln!("egress: cannot listen on port {PROXY_PORT}: {error}"),
    }
}

/// Serves each connection in a task of its own; above the limit, programs wait.
async fn accept<Serving>(listener: TcpListener, slots: Arc<Semaphore>, serve: impl Fn(TcpStream) -> Serving)
where
    Serving: Future<Output = ()> + Send + 'static,
{
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors: others must be closed first.
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let _ = stream.set_nodelay(true);
        let serving = serve(stream);
        tokio::spawn(async move {
            serving.await;
            drop(slot);
        });
    }
}
