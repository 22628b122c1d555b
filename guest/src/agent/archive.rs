use bytes::Bytes;

use super::call::{Call, Status};

pub async fn archive(_first: Bytes, _call: Call) -> Result<(), Status> {
    Err(Status::new("unimplemented", "not served yet"))
}

pub async fn upload(_first: Bytes, _call: Call) -> Result<(), Status> {
    Err(Status::new("unimplemented", "not served yet"))
}
