//! The generated message types.

// The public service has messages that only the server speaks.
#![allow(dead_code)]

pub mod sandbox {
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/sandbox.v1.rs"));
    }
}

pub mod guest {
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/guest.v1.rs"));
    }
}
