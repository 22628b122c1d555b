//! A TCP connection to a port on the sandbox's own loopback.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::call::{Call, Gone, Status, decode};
use crate::proto::guest::v1 as pb;

const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
const CHUNK_BYTES_MAX: usize = 32 * 1024;

pub async fn tunnel(first: Bytes, mut call: Call) -> Result<(), Status> {
    let request: pb::TunnelOpen = decode(first)?;
    let port = u16::try_from(request.port).ok().filter(|port| *port != 0);
    let port = port.ok_or_else(|| Status::invalid(format!("{} is not a port: 1 to 65535", request.port)))?;
    let stream = tokio::select! {
        biased;
        () = call.cancelled.cancelled() => return Err(Gone.into()),
        stream = dial(port) => stream?,
    };
    // Small writes of interactive programs must not wait for each other.
    let _ = stream.set_nodelay(true);
    call.send(&pb::TunnelOpened {}).await?;
    let (mut from_program, mut to_program) = stream.into_split();
    let mut inbound = call.take_inbound();
    let cancelled = call.cancelled.clone();
    // Outlives the call: our END says only that the program sends no more.
    tokio::spawn(async move {
        let inwards = async {
            while let Some(data) = inbound.recv().await {
                if to_program.write_all(&data).await.is_err() {
                    // The program reads no more. What is still sent is dropped, so that its sender can come to its end.
                    while inbound.recv().await.is_some() {}
                    return;
                }
            }
            let _ = to_program.shutdown().await;
        };
        tokio::select! {
            biased;
            () = cancelled.cancelled() => {}
            () = inwards => {}
        }
    });
    let mut buffer = vec![0; CHUNK_BYTES_MAX];
    loop {
        let read = tokio::select! {
            biased;
            () = call.cancelled.cancelled() => return Err(Gone.into()),
            read = from_program.read(&mut buffer) => read,
        };
        match read {
            Ok(0) => return Ok(()),
            Ok(count) => call.send_bytes(Bytes::copy_from_slice(&buffer[..count])).await?,
            Err(error) => return Err(Status::new("unavailable", format!("the connection to port {port} broke: {error}"))),
        }
    }
}

async fn dial(port: u16) -> Result<TcpStream, Status> {
    let either = async {
        match TcpStream::connect(("127.0.0.1", port)).await {
            Ok(stream) => Ok(stream),
            Err(error) => TcpStream::connect(("::1", port)).await.map_err(|_| error),
        }
    };
    match tokio::time::timeout(DIAL_TIMEOUT, either).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(Status::new("unavailable", format!("nothing answers on port {port} of the sandbox: {error}"))),
        Err(_) => Err(Status::new("unavailable", format!("port {port} of the sandbox did not answer in {} s", DIAL_TIMEOUT.as_secs()))),
    }
}
