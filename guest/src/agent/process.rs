use bytes::Bytes;

use super::call::{Call, Status};

pub async fn exec(_first: Bytes, _call: Call) -> Result<(), Status> {
    Err(Status::new("unimplemented", "not served yet"))
}

pub async fn list_processes(_first: Bytes, _call: Call) -> Result<(), Status> {
    Err(Status::new("unimplemented", "not served yet"))
}

pub async fn write_stdin(_first: Bytes, _call: Call) -> Result<(), Status> {
    Err(Status::new("unimplemented", "not served yet"))
}

pub async fn resize_terminal(_first: Bytes, _call: Call) -> Result<(), Status> {
    Err(Status::new("unimplemented", "not served yet"))
}

pub async fn signal_process(_first: Bytes, _call: Call) -> Result<(), Status> {
    Err(Status::new("unimplemented", "not served yet"))
}
