//! What the sink for RabbitMQ tells of itself, read at every scrape.

use std::sync::Arc;

use flux_cdc::rabbitmq::{Count, State, Status, TroubleKind};
use flux_env::Clock;
use flux_telemetry::{Kind, Registry, Value};
use flux_types::UnixMillis;

/// A family of one number.
struct One {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    value: fn(&Status, UnixMillis) -> Value,
}

const FAMILIES: [One; 13] = [
    One {
        name: "flux_cdc_rabbitmq_connected",
        help: "1 while changes flow to RabbitMQ",
        kind: Kind::Gauge,
        value: |status, _| (status.state() == State::Flowing).into(),
    },
    One {
        name: "flux_cdc_rabbitmq_blocked",
        help: "1 while RabbitMQ takes nothing because it is short of memory or disk",
        kind: Kind::Gauge,
        value: |status, _| matches!(status.state(), State::Blocked(_)).into(),
    },
    One {
        name: "flux_cdc_rabbitmq_in_flight",
        help: "Messages published and not yet confirmed",
        kind: Kind::Gauge,
        value: |status, _| status.in_flight().into(),
    },
    One {
        name: "flux_cdc_rabbitmq_lag_events",
        help: "Changes committed and not yet confirmed by RabbitMQ",
        kind: Kind::Gauge,
        value: |status, _| status.lag_events().into(),
    },
    One {
        name: "flux_cdc_rabbitmq_lag_seconds",
        help: "Age of the oldest of them",
        kind: Kind::Gauge,
        value: |status, now| status.lag_seconds(now).into(),
    },
    counter(
        "flux_cdc_rabbitmq_published",
        "Messages published, again after a trouble",
        |status, _| status.count(Count::Published).into(),
    ),
    counter(
        "flux_cdc_rabbitmq_confirmed",
        "Messages that RabbitMQ confirmed",
        |status, _| status.count(Count::Confirmed).into(),
    ),
    counter(
        "flux_cdc_rabbitmq_returned",
        "Messages that came back because no queue is bound",
        |status, _| status.count(Count::Returned).into(),
    ),
    counter(
        "flux_cdc_rabbitmq_refused",
        "Messages that RabbitMQ refused, as a full queue does",
        |status, _| status.count(Count::Refused).into(),
    ),
    counter(
        "flux_cdc_rabbitmq_connections",
        "Connections opened",
        |status, _| status.count(Count::Connections).into(),
    ),
    counter(
        "flux_cdc_rabbitmq_troubles",
        "Attempts that failed and connections that ended",
        |status, _| status.count(Count::Troubles).into(),
    ),
    counter(
        "flux_cdc_rabbitmq_cursor_commits",
        "Cursors committed behind confirmed messages",
        |status, _| status.count(Count::Commits).into(),
    ),
    counter(
        "flux_cdc_rabbitmq_gaps",
        "Times that changes were missing because they had not been published while they were kept",
        |status, _| status.count(Count::Gaps).into(),
    ),
];

const fn counter(
    name: &'static str,
    help: &'static str,
    value: fn(&Status, UnixMillis) -> Value,
) -> One {
    One {
        name,
        help,
        kind: Kind::Counter,
        value,
    }
}

/// Adds what the sink tells.
pub(crate) fn register_rabbitmq(registry: &Registry, status: &Arc<Status>, clock: &Arc<dyn Clock>) {
    for family in FAMILIES {
        let One {
            name,
            help,
            kind,
            value,
        } = family;
        let (status, clock) = (Arc::clone(status), Arc::clone(clock));
        registry.collect(name, help, kind, &[], move |samples| {
            let now = UnixMillis::new(clock.unix_millis());
            samples.push(&[], value(&status, now));
        });
    }
    let status = Arc::clone(status);
    registry.collect(
        "flux_cdc_rabbitmq_trouble",
        "1 for what keeps changes from RabbitMQ now",
        Kind::Gauge,
        &["kind"],
        move |samples| {
            let trouble = status.trouble();
            for kind in TroubleKind::ALL {
                samples.push(&[kind.as_str()], u64::from(trouble == Some(kind)));
            }
        },
    );
}
