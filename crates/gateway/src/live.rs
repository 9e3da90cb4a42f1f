//! What a change of configuration replaces, all at once: routes, limits, breakers, upstreams.
//!
//! A request takes the [`Live`] that is current when it begins and keeps it to its end, so that it
//! never sees half of a change. What a change does not touch goes over into the next [`Live`] with
//! its state: connections, buckets, breakers, descriptors that were learnt.

use std::sync::Arc;

use flux_env::Clock;

use crate::config::{Config, DescriptorSource, UpstreamConfig};
use crate::descriptor::catalog::Catalog;
use crate::descriptor::source;
use crate::error::StartError;
use crate::metrics::Metrics;
use crate::policy::route::Policies;
use crate::surroundings::Surroundings;
use crate::upstream::Upstream;

/// One configuration in effect.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) config: Config,
    pub(crate) catalog: Arc<Catalog>,
    /// In the order of the configuration.
    pub(crate) upstreams: Vec<Arc<Upstream>>,
    pub(crate) policies: Policies,
}

impl Live {
    /// # Errors
    /// Every mistake of the configuration; descriptors that cannot be loaded.
    pub(crate) fn new(
        config: Config,
        metrics: &Arc<Metrics>,
        clock: &Arc<dyn Clock>,
        surroundings: &Surroundings,
        previous: Option<&Self>,
    ) -> Result<Self, StartError> {
        config
            .validate()
            .map_err(|mistakes| StartError::Config { mistakes })?;
        let services = surroundings.services.as_ref();
        if services.is_none()
            && let Some(upstream) = config.upstreams.iter().find(|u| !u.service.is_empty())
        {
            let upstream = upstream.name.clone();
            return Err(StartError::WithoutRegistry { upstream });
        }
        let catalog = catalog(&config, previous)?;
        let same = |upstream: &UpstreamConfig| {
            let previous = previous.filter(|previous| {
                let (old, new) = (&previous.config, &config);
                old.response_bytes_max == new.response_bytes_max
                    && (old.balance, &old.health, &old.retry)
                        == (new.balance, &new.health, &new.retry)
            })?;
            let mut pairs = previous.config.upstreams.iter().zip(&previous.upstreams);
            let (_, kept) = pairs.find(|(config, _)| *config == upstream)?;
            Some(Arc::clone(kept))
        };
        let upstreams = config
            .upstreams
            .iter()
            .map(|upstream| {
                let new = || Upstream::new(upstream, &config, metrics, clock, services);
                same(upstream).unwrap_or_else(|| Arc::new(new()))
            })
            .collect();
        let before = previous.map(|previous| (&previous.config, &previous.policies));
        Ok(Self {
            upstreams,
            policies: Policies::new(&config, clock, &surroundings.activities, before),
            catalog: Arc::new(catalog),
            config,
        })
    }
}

/// Loads what descriptors are there; what upstreams have told of themselves stays known.
fn catalog(config: &Config, previous: Option<&Live>) -> Result<Catalog, StartError> {
    let wrong = |upstream: &str| {
        let upstream = upstream.to_owned();
        move |problem| StartError::Descriptors { upstream, problem }
    };
    let catalog = Catalog::new(config).map_err(wrong(""))?;
    for (position, upstream) in config.upstreams.iter().enumerate() {
        let pool = match upstream.descriptors {
            DescriptorSource::Reflection => {
                previous.and_then(|previous| previous.catalog.pool(&upstream.name))
            }
            DescriptorSource::Set(_)
            | DescriptorSource::Proto(_)
            | DescriptorSource::Embedded(_) => {
                source::load(&upstream.descriptors).map_err(wrong(&upstream.name))?
            }
        };
        if let Some(pool) = pool {
            catalog.learn(position, pool);
        }
    }
    Ok(catalog)
}
