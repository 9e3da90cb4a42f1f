//! Who joins which flight, who does not, and what becomes of those whose pilot is lost.

use std::sync::atomic::AtomicUsize;

use flux_env::SimClock;

use super::*;

type Lab = Arc<Flights<&'static str, u32>>;

fn writes() -> (Arc<SimClock>, Arc<Writes>) {
    let sim = Arc::new(SimClock::new(0));
    let clock: Arc<dyn Clock> = Arc::<SimClock>::clone(&sim);
    (sim, Arc::new(Writes::new(&clock, None)))
}

fn shared(writes: &Writes) -> Rule {
    Rule::Shared {
        begun: writes.begun(),
    }
}

fn pilot(flights: &Lab, rule: Rule) -> Pilot<&'static str, u32> {
    match flights.board(&"key", rule) {
        Boarding::Fly(pilot) => pilot,
        Boarding::Join(_) => panic!("joined"),
    }
}

fn passenger(flights: &Lab, rule: Rule) -> Passenger<u32> {
    match flights.board(&"key", rule) {
        Boarding::Join(passenger) => passenger,
        Boarding::Fly(_) => panic!("nobody to join"),
    }
}

#[tokio::test]
async fn shared_reads_join_a_flight_under_way_until_a_write_begins() {
    let (_, writes) = writes();
    let flights = Lab::default();
    let mut first = pilot(&flights, shared(&writes));
    first.depart(&writes).await;
    let second = passenger(&flights, shared(&writes));
    // A write, acknowledged: who comes now must not be told what was read before.
    writes.begin().end_known();
    let mut third = pilot(&flights, shared(&writes));
    let fourth = passenger(&flights, shared(&writes));
    first.land(1);
    assert_eq!(second.landed().await, Ok(1));
    third.depart(&writes).await;
    let fifth = passenger(&flights, shared(&writes));
    third.land(2);
    assert_eq!(fourth.landed().await, Ok(2));
    assert_eq!(fifth.landed().await, Ok(2));
    assert_eq!(flights.len(), 0);
}

#[tokio::test]
async fn a_flight_that_departed_during_a_write_is_joined_by_nobody() {
    let (_, writes) = writes();
    let flights = Lab::default();
    let write = writes.begin();
    let mut first = pilot(&flights, shared(&writes));
    first.depart(&writes).await;
    // It was under way when the flight departed: what the flight sees of it nobody knows.
    drop(pilot(&flights, shared(&writes)));
    write.end_known();
    drop(pilot(&flights, shared(&writes)));
    first.land(1);
    let mut next = pilot(&flights, shared(&writes));
    next.depart(&writes).await;
    drop(passenger(&flights, shared(&writes)));
}

/// Somebody who sees what changes behind the gateway's back.
#[derive(Debug, Default)]
struct Seen {
    begun: AtomicU64,
    ended: AtomicU64,
}

impl Activity for Seen {
    fn begun(&self) -> u64 {
        self.begun.load(Ordering::SeqCst)
    }

    fn ended(&self) -> u64 {
        self.ended.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn a_write_that_went_past_the_gateway_counts_if_somebody_tells_of_it() {
    let clock: Arc<dyn Clock> = Arc::new(SimClock::new(0));
    let seen = Arc::new(Seen::default());
    let activity: Arc<dyn Activity> = Arc::<Seen>::clone(&seen);
    let writes = Arc::new(Writes::new(&clock, Some(&activity)));
    let flights = Lab::default();
    let mut first = pilot(&flights, shared(&writes));
    first.depart(&writes).await;
    drop(passenger(&flights, shared(&writes)));
    // It begins: some may see it already.
    seen.begun.fetch_add(1, Ordering::SeqCst);
    let mut second = pilot(&flights, shared(&writes));
    second.depart(&writes).await;
    // It was under way when that departed, so that nobody joins it even when it has ended.
    seen.ended.fetch_add(1, Ordering::SeqCst);
    let mut third = pilot(&flights, shared(&writes));
    third.depart(&writes).await;
    drop(passenger(&flights, shared(&writes)));
    writes.begin().end_known();
    drop(pilot(&flights, shared(&writes)));
}

#[tokio::test]
async fn after_a_write_of_unknown_outcome_nothing_is_shared_until_it_cannot_come_any_more() {
    let (clock, writes) = writes();
    let flights = Lab::default();
    drop(writes.begin());
    let mut first = pilot(&flights, shared(&writes));
    first.depart(&writes).await;
    drop(pilot(&flights, shared(&writes)));
    drop(first);
    clock.advance(UNKNOWN_LINGER);
    let mut second = pilot(&flights, shared(&writes));
    second.depart(&writes).await;
    drop(passenger(&flights, shared(&writes)));
}

#[tokio::test]
async fn strict_reads_join_only_a_flight_that_has_not_departed() {
    let (_, writes) = writes();
    let flights = Lab::default();
    let mut first = pilot(&flights, Rule::Strict);
    let early = passenger(&flights, Rule::Strict);
    first.depart(&writes).await;
    let mut second = pilot(&flights, Rule::Strict);
    let late = passenger(&flights, Rule::Strict);
    let waiting = tokio::spawn(async move {
        second.depart(&writes).await;
        second.land(2);
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished(), "it waits for the one before");
    first.land(1);
    assert_eq!(early.landed().await, Ok(1));
    assert_eq!(late.landed().await, Ok(2));
    waiting.await.unwrap();
    assert_eq!(flights.len(), 0);
}

#[tokio::test]
async fn a_flight_that_hangs_holds_up_the_next_for_a_moment_only() {
    let (_, writes) = writes();
    let flights = Lab::default();
    let mut hanging = pilot(&flights, Rule::Strict);
    hanging.depart(&writes).await;
    let mut second = pilot(&flights, Rule::Strict);
    let begun = tokio::time::Instant::now();
    second.depart(&writes).await;
    assert!(begun.elapsed() >= BOARDING_MAX);
    second.land(2);
    drop(hanging);
    assert_eq!(flights.len(), 0);
}

#[tokio::test]
async fn those_whose_pilot_is_lost_look_for_another_flight() {
    let (_, writes) = writes();
    let flights = Lab::default();
    let mut first = pilot(&flights, shared(&writes));
    let boarded = passenger(&flights, shared(&writes));
    first.depart(&writes).await;
    let joined = passenger(&flights, shared(&writes));
    let lost = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _pilot = first;
        panic!("a call dies");
    }));
    assert!(lost.is_err());
    assert_eq!(boarded.landed().await, Err(Lost));
    assert_eq!(joined.landed().await, Err(Lost));
    let again = pilot(&flights, shared(&writes));
    let other = passenger(&flights, shared(&writes));
    again.land(7);
    assert_eq!(other.landed().await, Ok(7));
}

/// A register that takes its time, read by many threads through flights while one writes: no read
/// may return less than what was acknowledged before it began.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_read_returns_what_an_acknowledged_write_has_replaced() {
    let (_, writes) = writes();
    let flights = Lab::default();
    let register = Arc::new(AtomicUsize::new(0));
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let calls = Arc::new(AtomicUsize::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for reader in 0..8 {
        let (flights, writes) = (Arc::clone(&flights), Arc::clone(&writes));
        let (register, calls) = (Arc::clone(&register), Arc::clone(&calls));
        let acknowledged = Arc::clone(&acknowledged);
        tasks.spawn(async move {
            for _ in 0..500 {
                let least = acknowledged.load(Ordering::SeqCst);
                let rule = if reader % 2 == 0 {
                    shared(&writes)
                } else {
                    Rule::Strict
                };
                let value = match flights.board(&"key", rule) {
                    Boarding::Join(passenger) => passenger.landed().await.unwrap(),
                    Boarding::Fly(mut pilot) => {
                        pilot.depart(&writes).await;
                        calls.fetch_add(1, Ordering::SeqCst);
                        let value = register.load(Ordering::SeqCst);
                        tokio::task::yield_now().await;
                        pilot.land(u32::try_from(value).unwrap());
                        u32::try_from(value).unwrap()
                    }
                };
                assert!(value as usize >= least, "{value} after {least}");
            }
        });
    }
    for value in 1..=500 {
        let write = writes.begin();
        tokio::task::yield_now().await;
        register.store(value, Ordering::SeqCst);
        tokio::task::yield_now().await;
        write.end_known();
        acknowledged.store(value, Ordering::SeqCst);
        tokio::task::yield_now().await;
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert!(calls.load(Ordering::SeqCst) <= 4_000);
}
