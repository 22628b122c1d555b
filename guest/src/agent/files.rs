use bytes::Bytes;

use super::call::{Call, Status};

pub async fn read_file(_first: Bytes, _call: Call) -> Result<(), Status> {
    Err(Status::new("unimplemented", "not served yet"))
}

pub async fn write_file(_first: Bytes, _call: Call) -> Result<(), Status> {
    Err(Status::new("unimplemented", "not served yet"))
}

pub async fn list(_first: Bytes, _call: Call) -> Result<(), Status> {
    Err(Status::new("unimplemented", "not served yet"))
}

pub async fn stat(_first: Bytes, _call: Call) -> Result<(), Status> {
    Err(Status::new("unimplemented", "not served yet"))
}

pub async fn mkdir(_first: Bytes, _call: Call) -> Result<(), Status> {
    Err(Status::new("unimplemented", "not served yet"))
}

pub async fn remove(_first: Bytes, _call: Call) -> Result<(), Status> {
    Err(Status::new("unimplemented", "not served yet"))
}

pub async fn rename(_first: Bytes, _call: Call) -> Result<(), Status> {
    Err(Status::new("unimplemented", "not served yet"))
}

pub async fn set_mode(_first: Bytes, _call: Call) -> Result<(), Status> {
    Err(Status::new("unimplemented", "not served yet"))
}

pub async fn make_symlink(_first: Bytes, _call: Call) -> Result<(), Status> {
    Err(Status::new("unimplemented", "not served yet"))
}

pub async fn read_link(_first: Bytes, _call: Call) -> Result<(), Status> {
    Err(Status::new("unimplemented", "not served yet"))
}
