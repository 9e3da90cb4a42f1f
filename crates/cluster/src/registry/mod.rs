//! The registry: where the endpoints of services are kept, and found.

mod endpoint;

pub use endpoint::{Endpoint, Endpoints, WEIGHT_DEFAULT, fixed};
