//! `$MITOS_SOCKET`: what programs in the sandbox may ask of it. One JSON request a line, one request a connection; no secrets here.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::session::{CallError, Link, Refused};
use super::{identity, paths};
use crate::proto::guest::v1 as pb;

pub const PATH: &str = "/run/mitos.sock";
const MESSAGE_BYTES_MAX: u64 = 1 << 20;
const CONNECTIONS_MAX: usize = 256;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const LABEL_BYTES_MAX: usize = 256;
/// A child learns that it is one from the ADOPT that follows the HELLO which ended its call.
const ADOPT_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Request {
    Info,
    Fork {
        #[serde(default)]
        fork: Fork,
    },
    /// One line per generation, the present one first, until the program hangs up.
    WatchGeneration,
}

#[derive(Deserialize)]
struct Fork {
    #[serde(default = "one")]
    n: u32,
    #[serde(default)]
    label: String,
}

impl Default for Fork {
    fn default() -> Self {
        Self { n: one(), label: String::new() }
    }
}

fn one() -> u32 {
    1
}

/// Serves programs for ever.
pub async fn run(link: Link) {
    let path = paths::own(PATH);
    let _ = std::fs::remove_file(&path);
    let listening = UnixListener::bind(&path).and_then(|listener| {
        // For every user of the sandbox.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))?;
        Ok(listener)
    });
    let listener = match listening {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("cannot listen on {}: {error}", path.display());
            return;
        }
    };
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors: others must be closed first.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let link = link.clone();
        tokio::spawn(async move {
            serve(stream, &link).await;
            drop(slot);
        });
    }
}

async fn serve(stream: UnixStream, link: &Link) {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader.take(MESSAGE_BYTES_MAX));
    let mut line = Vec::new();
    let read = tokio::time::timeout(REQUEST_TIMEOUT, reader.read_until(b'\n', &mut line)).await;
    if !matches!(read, Ok(Ok(count)) if count > 0) {
        return;
    }
    let answer = match serde_json::from_slice::<Request>(&line) {
        // The text of the error could quote the request.
        Err(_) => refusal(
            "invalid_input",
            "the request is not understood: one JSON object a line, of type info, fork or watch_generation, up to 1 MiB",
        ),
        Ok(Request::Info) => info(),
        Ok(Request::Fork { fork }) => {
            let mut rest = reader.into_inner().into_inner();
            let mut nothing = [0; 1];
            tokio::select! {
                answer = self::fork(link, fork) => answer,
                // Whoever asked has gone; a half-closed connection still listens.
                Err(_) = rest.read(&mut nothing) => return,
            }
        }
        Ok(Request::WatchGeneration) => {
            let mut rest = reader.into_inner().into_inner();
            let mut nothing = [0; 1];
            tokio::select! {
                () = watch_generation(&mut writer) => {}
                _ = rest.read(&mut nothing) => {}
            }
            return;
        }
    };
    let _ = writer.write_all(format!("{answer}\n").as_bytes()).await;
}

/// With a code of docs/errors.md.
fn refusal(code: &str, error: &str) -> Value {
    json!({ "ok": false, "error": error, "code": code })
}

fn info() -> Value {
    let identity = identity::identity();
    json!({
        "ok": true,
        "info": {
            "identity": { "sandboxId": identity.sandbox_id, "templateId": identity.template_id, "parentId": identity.parent_id },
            "budget": { "maxForks": identity.fork_budget, "maxCheckpoints": 0, "forksUsed": identity.forks_used },
            "generation": identity.generation,
        },
    })
}

async fn fork(link: &Link, fork: Fork) -> Value {
    let mut renewals = identity::subscribe();
    let before = renewals.borrow_and_update().clone();
    if before.fork_budget == 0 {
        return refusal(
            "budget_exhausted",
            "this sandbox may not fork itself: its fork budget is 0. Who creates or forks a sandbox can give it one (fork_budget)",
        );
    }
    if fork.n == 0 {
        return refusal("invalid_input", "n must be at least 1");
    }
    if fork.label.len() > LABEL_BYTES_MAX {
        return refusal("invalid_input", &format!("the label is longer than {LABEL_BYTES_MAX} bytes"));
    }
    let left = before.fork_budget.saturating_sub(before.forks_used);
    if fork.n > left {
        return refusal(
            "budget_exhausted",
            &format!("{} children were asked for, and {left} are left of the fork budget of {}", fork.n, before.fork_budget),
        );
    }
    let count = fork.n;
    let request = pb::ForkSelfRequest { count: fork.n, label: fork.label };
    match link.call("ForkSelf", &request).await {
        Ok(reply) => match pb::ForkSelfReply::decode(reply) {
            Ok(reply) => {
                identity::spend_forks(count);
                json!({ "ok": true, "fork": { "children": reply.children }, "sandbox_id": before.sandbox_id })
            }
            Err(_) => refusal("internal", "the host's answer cannot be decoded"),
        },
        Err(CallError::Refused(Refused { code, error_code, message })) => {
            let code = if error_code.is_empty() { code } else { error_code };
            refusal(&code, &format!("the fork was refused ({code}): {message}"))
        }
        Err(CallError::SessionLost) => {
            let renewed = renewals.wait_for(|identity| identity.generation > before.generation);
            match tokio::time::timeout(ADOPT_TIMEOUT, renewed).await {
                Ok(Ok(identity)) => json!({ "ok": true, "fork": { "children": [] }, "sandbox_id": identity.sandbox_id }),
                _ => refusal("unavailable", "the connection to the host was lost; whether children exist is not known here"),
            }
        }
    }
}

async fn watch_generation(writer: &mut tokio::net::unix::OwnedWriteHalf) {
    let mut renewals = identity::subscribe();
    let mut told = None;
    loop {
        let identity = renewals.borrow_and_update().clone();
        if told.replace(identity.generation) != Some(identity.generation) {
            let line = json!({ "ok": true, "generation": identity.generation, "sandbox_id": identity.sandbox_id });
            if writer.write_all(format!("{line}\n").as_bytes()).await.is_err() {
                return;
            }
        }
        if renewals.changed().await.is_err() {
            return;
        }
    }
}
