//! What a gateway is given by the process around it, beside its configuration.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use flux_cluster::registry::Registry;

/// What changes behind an upstream, whoever changes it. Whoever runs the upstream in the same
/// process can tell; then identical reads share a call with the same exactness whatever way a
/// write takes. Both numbers only grow, and `ended` is never above `begun`.
pub trait Activity: Debug + Send + Sync {
    /// Changes begun so far. A change counts before anybody can see it.
    fn begun(&self) -> u64;

    /// Changes that have ended: all of their effect can be seen.
    fn ended(&self) -> u64;
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Where upstreams are looked for that name a `service`.
    pub services: Option<Registry>,
    /// By the name of the upstream.
    pub activities: BTreeMap<String, Arc<dyn Activity>>,
}
