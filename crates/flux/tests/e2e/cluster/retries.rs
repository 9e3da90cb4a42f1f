//! Request ids over failovers, as a client sees them that speaks RESP and keeps its own books.

use std::time::Instant;

use super::nodes::Nodes;
use crate::harness::PATIENCE;
use crate::harness::resp::Value;

/// Sends a command to one node after the other until there is an answer that leaves nothing open.
fn until_answered(nodes: &Nodes, down: Option<usize>, words: &[&str]) -> Value {
    let deadline = Instant::now() + PATIENCE;
    let mut index = 0;
    loop {
        assert!(Instant::now() < deadline, "{words:?} is not answered");
        index = (index + 1) % nodes.count();
        if Some(index) == down {
            continue;
        }
        match nodes.connect(index).try_command(words) {
            Ok(Value::Error(text)) if is_passing(&text) => {}
            Ok(reply) => return reply,
            Err(_) => {}
        }
    }
}

fn is_passing(text: &str) -> bool {
    [
        "UNCERTAIN",
        "TRYAGAIN",
        "CLUSTERDOWN",
        "LOADING",
        "TIMEOUT",
        "BUSY",
    ]
    .iter()
    .any(|word| text.starts_with(word))
}

#[test]
fn a_retry_after_a_failover_is_done_once_at_whatever_node() {
    let mut nodes = Nodes::started(3, &["--shards", "2"]);
    let session = nodes.connect(0).draw_session();
    let mut sent: Vec<String> = Vec::new();
    for round in 0..2 {
        let leader = nodes.leader(round % 2);
        let mut connection = nodes.connect(leader);
        // Sent to a leader that dies with them in its hands.
        for _ in 0..100 {
            let number = (sent.len() + 1).to_string();
            let words = ["FLUX.REQUEST", &session, &number, "1", "INCR", "n"];
            connection.send_command(&words).expect("it is up");
            sent.push(number);
        }
        nodes.kill(leader);
        let mut answers = Vec::new();
        for number in &sent {
            let words = ["FLUX.REQUEST", session.as_str(), number, "1", "INCR", "n"];
            let first = until_answered(&nodes, Some(leader), &words);
            let again = until_answered(&nodes, Some(leader), &words);
            assert_eq!(first, again, "request {number}");
            let Value::Integer(count) = first else {
                panic!("request {number}: {first:?}");
            };
            answers.push(count);
        }
        answers.sort_unstable();
        let all = i64::try_from(sent.len()).expect("a few hundred");
        assert_eq!(answers, (1..=all).collect::<Vec<_>>(), "each counted once");
        nodes.spawn(leader);
        nodes.wait_node(leader);
    }
    // The outcome is known wherever it is asked for, and asking ends what never came.
    for (number, answer) in [("7", "done"), ("900", "not-done")] {
        for _ in 0..2 {
            let words = ["FLUX.OUTCOME", session.as_str(), number, "1"];
            let reply = until_answered(&nodes, None, &words);
            let Value::Array(items) = reply else {
                panic!("an outcome is an array: {reply:?}");
            };
            assert_eq!(items[0], Value::Simple(answer.to_owned()));
        }
    }
    let words = ["FLUX.REQUEST", session.as_str(), "900", "1", "INCR", "n"];
    let late = until_answered(&nodes, None, &words);
    assert!(
        matches!(&late, Value::Error(text) if text.starts_with("ERR somebody")),
        "{late:?}"
    );
    nodes.assert_equal();
}
