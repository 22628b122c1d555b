use bytes::Bytes;

use super::call::{Call, Status};

pub async fn run_code(_first: Bytes, _call: Call) -> Result<(), Status> {
    Err(Status::new("unimplemented", "not served yet"))
}

pub async fn warm_kernel(_first: Bytes, _call: Call) -> Result<(), Status> {
    Err(Status::new("unimplemented", "not served yet"))
}
