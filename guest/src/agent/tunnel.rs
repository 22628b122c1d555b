use bytes::Bytes;

use super::call::{Call, Status};

pub async fn tunnel(_first: Bytes, _call: Call) -> Result<(), Status> {
    Err(Status::new("unimplemented", "not served yet"))
}
