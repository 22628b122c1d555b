//! The agent: PID 1 of a sandbox. It reads the link on stdin and writes it on stdout (docs/link.md).

pub mod archive;
pub mod call;
mod changes;
mod channel;
mod connection;
mod contexts;
mod dispatch;
mod egress;
mod epoll;
pub mod files;
pub mod identity;
mod init;
pub mod kernel;
mod limits;
mod link;
mod link_attributes;
pub mod paths;
pub mod process;
mod proctable;
mod programs;
mod pty;
pub mod reaper;
mod ring;
mod session;
mod small_file;
mod socket;
pub mod spawn;
mod tunnel;
pub mod user;
mod utf8;
mod vitals;
mod warm;
pub mod watch;

use std::process::ExitCode;

pub use changes::WRITTEN_FD_VARIABLE;
pub use connection::PORT_VARIABLE as LINK_PORT_VARIABLE;

/// Runs until the machine ends.
pub fn main() -> ExitCode {
    init::run();
    changes::remember_lower_files();
    // One thread suffices: the work is done by the kernel and by programs. What could block has threads of its own.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(serve()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot serve: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> std::io::Result<()> {
    let connection = connection::open([libc::STDIN_FILENO, libc::STDOUT_FILENO])?;
    let (received, outgoing) = link::start(&connection, session::at_rest)?;
    let (link, session) =
        session::start(received, outgoing, |method, first, call| Box::pin(async move { dispatch::dispatch(&method, first, call).await }));
    tokio::spawn(socket::run(link.clone()));
    tokio::spawn(egress::run(link));
    tokio::spawn(session.run());
    reaper::run().await
}
