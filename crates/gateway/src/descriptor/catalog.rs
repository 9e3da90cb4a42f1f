//! The route table of all upstreams, rebuilt whole when the descriptors of one change.
//!
//! Workers read the current snapshot without a lock and keep it for the length of a request, so a
//! change never touches a request that is under way.

use std::sync::Arc;

use arc_swap::ArcSwap;
use http::Method;
use parking_lot::Mutex;
use prost_reflect::{DescriptorPool, MethodDescriptor};
use tracing::{debug, warn};

use super::http_rule;
use super::reflection::is_infrastructure;
use super::route::{Rpc, RpcRoute};
use crate::config::{Config, RouteConfig};
use crate::route::template::Template;
use crate::route::trie::Trie;
use crate::transcode::plan::{Plans, TextBytes};

/// All routes as they are now.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) routes: Trie<Route>,
    /// Whether some upstream's descriptors are not known yet, so that an unknown path may become
    /// known.
    pub(crate) is_incomplete: bool,
}

/// Where a method and path lead.
#[derive(Debug)]
pub(crate) enum Route {
    Rpc(Arc<RpcRoute>),
    /// A configured route whose upstream has not told its descriptors yet.
    Pending,
    /// A configured route that does not fit what its upstream told.
    Unusable(String),
}

/// Builds snapshots and holds the current one.
#[derive(Debug)]
pub(crate) struct Catalog {
    current: ArcSwap<Snapshot>,
    upstreams: Mutex<Vec<Known>>,
    routes: Vec<RouteConfig>,
    text: TextBytes,
    /// Plans of the well-known error details.
    pub(crate) error_details: Plans,
}

/// What is known of one upstream.
#[derive(Debug)]
struct Known {
    name: String,
    services: Vec<String>,
    plans: Option<Arc<Plans>>,
}

impl Catalog {
    /// A catalog without any descriptors.
    ///
    /// # Errors
    /// Only if the program's own error details do not compile.
    pub(crate) fn new(config: &Config) -> Result<Self, String> {
        let upstreams = config.upstreams.iter().map(|upstream| Known {
            name: upstream.name.clone(),
            services: upstream.services.clone(),
            plans: None,
        });
        let catalog = Self {
            current: ArcSwap::default(),
            upstreams: Mutex::new(upstreams.collect()),
            routes: config.routes.clone(),
            text: TextBytes {
                option: config.text_bytes_option.clone(),
                fields: config.text_bytes_fields.iter().cloned().collect(),
            },
            error_details: Plans::new(super::source::error_details()?, &TextBytes::default()),
        };
        catalog.rebuild(&catalog.upstreams.lock());
        Ok(catalog)
    }

    pub(crate) fn current(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// The descriptors of an upstream, given by name, if they are known.
    pub(crate) fn pool(&self, upstream: &str) -> Option<DescriptorPool> {
        let upstreams = self.upstreams.lock();
        let known = upstreams.iter().find(|known| known.name == upstream)?;
        known.plans.as_ref().map(|plans| plans.pool().clone())
    }

    /// Takes the descriptors of an upstream, given by position, and rebuilds all routes.
    pub(crate) fn learn(&self, upstream: usize, pool: DescriptorPool) {
        let plans = Arc::new(Plans::new(pool, &self.text));
        let mut upstreams = self.upstreams.lock();
        if let Some(known) = upstreams.get_mut(upstream) {
            known.plans = Some(plans);
        }
        self.rebuild(&upstreams);
    }

    fn rebuild(&self, upstreams: &[Known]) {
        let mut routes = Trie::default();
        for (position, config) in self.routes.iter().enumerate() {
            if let Ok((method, template)) = config.target() {
                let mut route = configured(upstreams, config, &method, &template);
                if let Route::Rpc(route) = &mut route
                    && let Some(route) = Arc::get_mut(route)
                {
                    route.configured = Some(position);
                }
                if !routes.insert(method, &template, route) {
                    warn!(route = %config.http, "route hides another");
                }
            }
        }
        for (position, known) in upstreams.iter().enumerate() {
            if let Some(plans) = &known.plans {
                add_services(&mut routes, position, known, plans);
            }
        }
        let is_incomplete = upstreams.iter().any(|known| known.plans.is_none());
        self.current.store(Arc::new(Snapshot {
            routes,
            is_incomplete,
        }));
    }
}

fn configured(
    upstreams: &[Known],
    config: &RouteConfig,
    method: &Method,
    template: &Template,
) -> Route {
    let mut is_pending = false;
    for (position, known) in upstreams.iter().enumerate() {
        if !config.upstream.is_empty() && config.upstream != known.name {
            continue;
        }
        let Some(plans) = &known.plans else {
            is_pending = true;
            continue;
        };
        let Some(found) = find_method(plans, &config.rpc) else {
            continue;
        };
        let route = Rpc::new(position, plans, &found)
            .and_then(|rpc| RpcRoute::configured(rpc, template, method, config));
        return match route {
            Ok(route) => Route::Rpc(Arc::new(route)),
            Err(problem) => {
                warn!(route = %config.http, %problem, "configured route does not fit its rpc");
                Route::Unusable(problem)
            }
        };
    }
    if is_pending {
        return Route::Pending;
    }
    warn!(route = %config.http, rpc = %config.rpc, "no upstream has the rpc of a configured route");
    Route::Unusable(format!("no upstream has the rpc {}", config.rpc))
}

fn find_method(plans: &Plans, rpc: &str) -> Option<MethodDescriptor> {
    let (service, method) = rpc.split_once('/')?;
    let service = plans.pool().get_service_by_name(service)?;
    service
        .methods()
        .find(|candidate| candidate.name() == method)
}

fn add_services(routes: &mut Trie<Route>, position: usize, known: &Known, plans: &Arc<Plans>) {
    let services = plans.pool().services().filter(|service| {
        let name = service.full_name();
        let is_wanted = known.services.is_empty() || known.services.iter().any(|w| w == name);
        is_wanted && !is_infrastructure(name)
    });
    for method in services.flat_map(|service| service.methods().collect::<Vec<_>>()) {
        let rpc = match Rpc::new(position, plans, &method) {
            Ok(rpc) => rpc,
            Err(problem) => {
                warn!(rpc = %method.full_name(), %problem, "rpc cannot be called");
                continue;
            }
        };
        for binding in http_rule::bindings(&method) {
            let route = Template::parse(&binding.template)
                .map_err(|error| error.to_string())
                .and_then(|template| {
                    let mut route = RpcRoute::annotated(
                        rpc.clone(),
                        &template,
                        &binding.body,
                        &binding.response_body,
                    )?;
                    route.http = format!("{} {}", binding.method, binding.template).into();
                    Ok((template, route))
                });
            match route {
                Ok((template, route)) => {
                    add(routes, binding.method, &template, route);
                }
                Err(problem) => {
                    warn!(rpc = %method.full_name(), %problem, "google.api.http rule is not usable");
                }
            }
        }
        if let Ok(template) = Template::parse(rpc.path.path()) {
            add(routes, Method::POST, &template, RpcRoute::direct(rpc));
        }
    }
}

/// Earlier routes win: configuration before annotations, and upstreams in their order.
fn add(routes: &mut Trie<Route>, method: Method, template: &Template, route: RpcRoute) {
    let path = route.rpc.path.clone();
    if !routes.insert(method, template, Route::Rpc(Arc::new(route))) {
        debug!(rpc = %path, "route is hidden by an earlier one");
    }
}
