//! Generates the message types of `sandbox.v1` and `guest.v1` from the one set of proto files.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = "../packages/protocol/proto";
    println!("cargo:rerun-if-changed={root}");
    let files = protox::compile(["guest/v1/guest.proto"], [root])?;
    prost_build::Config::new().bytes(["."]).btree_map(["."]).compile_fds(files)?;
    Ok(())
}
