//! What asking for a span costs: without a tracer, with one that records nothing, with 1 %.
//!
//!     cargo run --profile ci -p flux-telemetry --example trace_bench
//!
//! Nanoseconds of processor time for each call, the best of several rounds, so that a busy machine
//! does not count.
#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a bench reads a clock and prints"
)]

use std::hint::black_box;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Instant;

use flux_telemetry::trace::{self, Finished, Kind, Sampling, Service, Setup, Sink, Tracer};

const CALLS: u32 = 5_000_000;
const ROUNDS: u32 = 9;

/// Takes spans and forgets them.
#[derive(Debug)]
struct Nowhere;

impl Sink for Nowhere {
    fn take(&self, span: Finished) {
        drop(black_box(span));
    }
}

fn best(name: &str, mut call: impl FnMut()) {
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        for _ in 0..CALLS {
            call();
        }
        best = best.min(begun.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS));
    }
    println!("{name:<44} {best:6.2} ns");
}

fn main() {
    let name = || "SET";
    best("nothing (the loop)", || black_box(()));
    best("begin, no tracer", || {
        drop(black_box(trace::begin(Service::Node, Kind::Server, name)));
    });
    best("enter, no tracer", || {
        drop(black_box(trace::enter(
            Service::Node,
            Kind::Server,
            None,
            name,
        )));
    });
    best("current", || {
        black_box(trace::current());
    });
    best("a poll within nothing", || {
        let ready = pin!(std::future::ready(()));
        let work = pin!(trace::within(None, ready));
        let _ready = black_box(work.poll(&mut Context::from_waker(Waker::noop())));
    });
    for percent in [0.0, 1.0] {
        let tracer = Arc::new(Tracer::new(Setup {
            sampling: Sampling::parent_based(percent / 100.0),
            sink: Arc::new(Nowhere),
            now: || 0,
            seed: 1,
        }));
        best(&format!("begin, {percent} % recorded"), || {
            drop(black_box(tracer.begin_trace(
                Service::Node,
                Kind::Server,
                name,
            )));
        });
        best(&format!("enter, {percent} % recorded"), || {
            drop(black_box(tracer.enter(
                Service::Node,
                Kind::Server,
                None,
                name,
            )));
        });
    }
}
