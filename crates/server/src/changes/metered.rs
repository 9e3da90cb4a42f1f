//! What a future costs: the processor time of all its polls together.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::time::Duration;

/// Runs a future, and tells the processor time that it took.
pub(crate) async fn metered<T>(future: impl Future<Output = T>) -> (T, Duration) {
    let mut future = pin!(future);
    let mut cost = Duration::ZERO;
    let output = poll_fn(|context| {
        let begin = flux_env::thread_cpu_time();
        let polled = future.as_mut().poll(context);
        cost += flux_env::thread_cpu_time().saturating_sub(begin);
        polled
    });
    let output = output.await;
    (output, cost)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_costs_and_waiting_does_not() {
        let work = Duration::from_millis(10);
        let ((), cost) = metered(async move {
            for _ in 0..2 {
                let begin = flux_env::thread_cpu_time();
                while flux_env::thread_cpu_time() < begin + work {}
                tokio::time::sleep(work * 10).await;
            }
        })
        .await;
        assert!(work * 2 <= cost && cost < work * 10, "{cost:?}");
    }
}
