//! What a machine does while it waits for its identity, so that the first calls after it find their memory in place.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::call::{Call, Status, decode};
use super::spawn::{self, Program};
use super::{kernel, programs};
use crate::proto::guest::v1 as pb;

/// It waits for nobody: a program that does not end in time has warmed enough.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(2);

/// Nothing here is worth a failure. Where programs stand still until the identity is there, only this call itself has warmed something.
pub async fn warm(first: Bytes, call: Call) -> Result<(), Status> {
    decode::<pb::Empty>(first)?;
    if !programs::are_frozen() {
        kernel::warm_all();
        let _ = tokio::time::timeout(PROGRAM_TIMEOUT, run_nothing()).await;
    }
    Ok(call.send(&pb::Empty {}).await?)
}

/// Our own program, since others are somebody's: it says its version to nobody, and ends.
async fn run_nothing() -> Result<(), String> {
    let started = programs::start(|| {
        let null = || spawn::dev_null().map_err(|error| error.to_string());
        spawn::spawn(Program {
            argv: &["/proc/self/exe".into(), "version".into()],
            env: &BTreeMap::new(),
            cwd: "/",
            user: None,
            fds: vec![(null()?, 0), (null()?, 1), (null()?, 2)],
            terminal: None,
        })
    });
    started.await?.exit.await.map(|_| ()).map_err(|error| error.to_string())
}
