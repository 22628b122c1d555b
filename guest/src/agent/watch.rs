use bytes::Bytes;

use super::call::{Call, Status};

pub async fn watch(_first: Bytes, _call: Call) -> Result<(), Status> {
    Err(Status::new("unimplemented", "not served yet"))
}
