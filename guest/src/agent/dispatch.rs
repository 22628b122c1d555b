//! Method names of `guest.v1.Agent` and the functions that serve them.

use bytes::Bytes;

use super::call::{Call, Status};
use super::{archive, changes, contexts, files, kernel, process, proctable, tunnel, vitals, warm, watch};

/// Serves one call to its end. Every handler gets the first message and the rest of the call, and returns the status of the END.
pub async fn dispatch(method: &str, first: Bytes, call: Call) -> Result<(), Status> {
    match method {
        "Exec" => process::exec(first, call).await,
        "ListProcesses" => process::list_processes(first, call).await,
        "WriteStdin" => process::write_stdin(first, call).await,
        "ResizeTerminal" => process::resize_terminal(first, call).await,
        "SignalProcess" => process::signal_process(first, call).await,
        "Processes" => proctable::processes(first, call).await,
        "Vitals" => vitals::vitals(first, call).await,
        "RunCode" => kernel::run_code(first, call).await,
        "WarmKernel" => kernel::warm_kernel(first, call).await,
        "CreateContext" => contexts::create_context(first, call).await,
        "ListContexts" => contexts::list_contexts(first, call).await,
        "RestartContext" => contexts::restart_context(first, call).await,
        "RemoveContext" => contexts::remove_context(first, call).await,
        "ReadFile" => files::read_file(first, call).await,
        "WriteFile" => files::write_file(first, call).await,
        "List" => files::list(first, call).await,
        "Stat" => files::stat(first, call).await,
        "Mkdir" => files::mkdir(first, call).await,
        "Remove" => files::remove(first, call).await,
        "Rename" => files::rename(first, call).await,
        "SetMode" => files::set_mode(first, call).await,
        "MakeSymlink" => files::make_symlink(first, call).await,
        "ReadLink" => files::read_link(first, call).await,
        "Warm" => warm::warm(first, call).await,
        "Watch" => watch::watch(first, call).await,
        "Archive" => archive::archive(first, call).await,
        "Upload" => archive::upload(first, call).await,
        "SetOwners" => changes::set_owners(first, call).await,
        "Changes" => changes::changes(first, call).await,
        "Tunnel" => tunnel::tunnel(first, call).await,
        _ => Err(Status::new("unimplemented", format!("the agent has no method {method:?}"))),
    }
}
