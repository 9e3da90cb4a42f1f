//! Spans as a sink sees them.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use super::{
    Entered, Finished, Kind, Sampling, Service, Setup, Sink, Span, Tracer, Value, current, within,
};
use crate::context::TraceContext;

#[derive(Debug, Default)]
struct Kept(Mutex<Vec<Finished>>);

impl Sink for Kept {
    fn take(&self, span: Finished) {
        self.0.lock().push(span);
    }
}

fn ticks() -> u64 {
    static TICKS: AtomicU64 = AtomicU64::new(1000);
    TICKS.fetch_add(1, Ordering::Relaxed)
}

fn tracer(sampling: Sampling) -> (Arc<Tracer>, Arc<Kept>) {
    let kept = Arc::new(Kept::default());
    let sink = Arc::clone(&kept);
    let setup = Setup {
        sampling,
        sink,
        now: ticks,
        seed: 42,
    };
    (Arc::new(Tracer::new(setup)), kept)
}

fn served(tracer: &Arc<Tracer>, parent: Option<TraceContext>) -> Entered {
    tracer.enter(Service::Gateway, Kind::Server, parent, || "GET /x")
}

fn sampled(entered: Entered) -> Span {
    entered.into_span().unwrap()
}

#[test]
fn a_request_and_its_call_are_parent_and_child_of_one_trace() {
    let (tracer, kept) = tracer(Sampling::parent_based(1.0));
    let request = sampled(served(&tracer, None));
    let call = request.child(Service::Gateway, Kind::Client, || "a.B/C".to_owned());
    call.set("rpc.method", "a.B/C".to_owned());
    call.fail("UNAVAILABLE");
    let (outer, inner) = (request.context(), call.context());
    drop(call);
    request.rename("GET /x/{y}");
    request.link(inner);
    drop(request);
    let [call, request] = <[Finished; 2]>::try_from(kept.0.lock().clone()).unwrap();
    assert_eq!((request.context, call.context), (outer, inner));
    assert_eq!(outer.trace_id(), inner.trace_id());
    assert_eq!((request.parent, call.parent), (None, Some(outer.span_id())));
    assert!(!request.parent_is_remote && !call.parent_is_remote);
    assert_eq!((&*request.name, &*call.name), ("GET /x/{y}", "a.B/C"));
    assert_eq!(request.links, [inner]);
    assert_eq!(call.error.as_deref(), Some("UNAVAILABLE"));
    let names: Vec<_> = call.attributes.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["rpc.method", "error.type"]);
    assert_eq!(call.attributes[1].1, Value::from("UNAVAILABLE"));
    assert!(request.begun_at < call.begun_at && call.ended_at < request.ended_at);
}

#[test]
fn an_incoming_context_is_continued_below_its_span() {
    let (tracer, kept) = tracer(Sampling::parent_based(0.0));
    let caller = TraceContext::new(7, 8, true).unwrap();
    let span = sampled(served(&tracer, Some(caller)));
    assert_eq!(span.context().trace_id(), 7);
    assert_ne!(span.context().span_id(), 8);
    drop(span);
    let finished = kept.0.lock().pop().unwrap();
    assert_eq!(finished.parent, Some(8));
    assert!(finished.parent_is_remote);
}

#[test]
fn what_is_not_sampled_makes_no_span_and_says_so_downstream() {
    let (tracer, kept) = tracer(Sampling::parent_based(0.0));
    let entered = tracer.enter(Service::Node, Kind::Server, None, || -> String {
        unreachable!("nobody wants its name")
    });
    let context = entered.context().unwrap();
    assert!(entered.span().is_none() && !context.is_sampled());
    let (tracer_of_all, _) = self::tracer(Sampling::parent_based(1.0));
    let caller = TraceContext::new(7, 8, false).unwrap();
    let entered = served(&tracer_of_all, Some(caller));
    assert_eq!(entered.context(), Some(caller), "passed on as it is");
    drop(entered);
    assert!(kept.0.lock().is_empty());
}

#[test]
fn a_trace_begun_here_has_no_parent_and_is_made_only_if_recorded() {
    let name = || "SET";
    let (none, kept) = tracer(Sampling::parent_based(0.0));
    assert!(
        none.begin_trace(Service::Node, Kind::Server, name)
            .is_none()
    );
    assert!(kept.0.lock().is_empty());
    let (all, kept) = tracer(Sampling::parent_based(1.0));
    drop(all.begin_trace(Service::Node, Kind::Server, name).unwrap());
    let span = kept.0.lock().pop().unwrap();
    assert_eq!((span.parent, &*span.name), (None, "SET"));
    assert!(span.context.is_sampled());
}

#[test]
fn what_a_message_causes_is_a_trace_of_its_own_with_a_link() {
    let (tracer, kept) = tracer(Sampling::parent_based(0.0));
    let sent = TraceContext::new(7, 8, true).unwrap();
    let name = || "process x";
    drop(tracer.begin_linked(sent, Service::Consumer, Kind::Consumer, name));
    let span = kept.0.lock().pop().unwrap();
    assert_eq!((span.parent, span.links.as_slice()), (None, &[sent][..]));
    assert_ne!(span.context.trace_id(), 7);
}

#[test]
fn a_span_holds_no_more_than_its_limits() {
    let (tracer, kept) = tracer(Sampling::parent_based(1.0));
    let span = sampled(served(&tracer, None));
    for number in 0..1000_u64 {
        span.set("n", number);
        span.link(span.context());
    }
    drop(span);
    let span = kept.0.lock().pop().unwrap();
    assert_eq!((span.attributes.len(), span.links.len()), (64, 128));
}

#[test]
fn code_knows_its_trace_while_it_runs_and_only_then() {
    let context = TraceContext::new(1, 2, true).unwrap();
    let inner = TraceContext::new(3, 4, true).unwrap();
    let seen = Mutex::new(Vec::new());
    let work = pin!(async {
        seen.lock().push(current());
        let nested = pin!(async { seen.lock().push(current()) });
        within(Some(inner), nested).await;
        let passed = pin!(async { seen.lock().push(current()) });
        within(None, passed).await;
        std::future::pending::<()>().await;
    });
    let mut work = pin!(within(Some(context), work));
    assert_eq!(current(), None);
    let polled = work.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert_eq!(polled, Poll::Pending);
    assert_eq!(current(), None, "what waits is not what runs");
    assert_eq!(*seen.lock(), [Some(context), Some(inner), Some(context)]);
}
