//! Writes with request ids against real processes: whatever is killed, each is done once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::harness::document::steps;
use crate::harness::resp::{Connection, Value, encode};
use crate::harness::{Start, have, repository, shell, wait_until};

const WRITERS: usize = 4;
/// All of a writer's requests stay in its window, so that any of them may be sent again.
const REQUESTS_MAX: u64 = 1000;
/// Commands that a writer sends before it reads.
const PIPELINE: u64 = 8;

/// What a writer has sent and what it was answered, by sequence from 1.
struct Writer {
    session: String,
    answers: Vec<Option<i64>>,
}

impl Writer {
    fn request(&self, sequence: usize) -> Vec<u8> {
        let sequence = sequence.to_string();
        let session = self.session.as_str();
        encode(&["FLUX.REQUEST", session, &sequence, "1", "INCR", "n"])
    }

    /// Sends new requests until the connection breaks or there are enough.
    fn run(&mut self, connection: &mut Connection, acknowledged: &AtomicU64, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) && (self.answers.len() as u64) < REQUESTS_MAX {
            let first = self.answers.len();
            let mut pipeline = Vec::new();
            for _ in 0..PIPELINE {
                self.answers.push(None);
                pipeline.extend(self.request(self.answers.len()));
            }
            if connection.send(&pipeline).is_err() {
                return;
            }
            for answer in &mut self.answers[first..] {
                match connection.reply() {
                    Ok(Value::Integer(number)) => *answer = Some(number),
                    Ok(Value::Error(text)) if text.starts_with("LOADING") => return,
                    Ok(other) => panic!("{other:?}"),
                    Err(_) => return,
                }
                acknowledged.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Sends everything again: what was answered is answered alike, what was not is done now, if
    /// it was not done then.
    fn repeat(&mut self, connection: &mut Connection) {
        for sequence in 1..=self.answers.len() {
            let again = self.request(sequence);
            connection.send(&again).expect("the node is up");
            let Value::Integer(number) = connection.reply().expect("the node is up") else {
                panic!("request {sequence} of {} is not answered", self.session);
            };
            let answer = &mut self.answers[sequence - 1];
            assert!(answer.is_none_or(|first| first == number), "{sequence}");
            *answer = Some(number);
        }
    }
}

/// Kills a node while its writers write, three times, and has them send everything again.
#[test]
fn every_retry_after_a_kill_is_done_once() {
    let mut process = Start::node().ready();
    let mut writers: Vec<Writer> = (0..WRITERS)
        .map(|_| Writer {
            session: process.connect().draw_session(),
            answers: Vec::new(),
        })
        .collect();
    for round in 1..=3 {
        let acknowledged = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for mut writer in std::mem::take(&mut writers) {
            let mut connection = process.connect();
            let (acknowledged, stop) = (Arc::clone(&acknowledged), Arc::clone(&stop));
            threads.push(std::thread::spawn(move || {
                writer.run(&mut connection, &acknowledged, &stop);
                writer
            }));
        }
        wait_until("some writes", || {
            acknowledged.load(Ordering::Relaxed) > 100 * round
        });
        process = Start::node().over(process.kill()).ready();
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            writers.push(thread.join().expect("a writer ends with its connection"));
        }
        for writer in &mut writers {
            writer.repeat(&mut process.connect());
        }
    }
    let mut numbers: Vec<i64> = writers
        .iter()
        .flat_map(|writer| {
            writer
                .answers
                .iter()
                .map(|answer| answer.expect("repeated"))
        })
        .collect();
    numbers.sort_unstable();
    let all = i64::try_from(numbers.len()).expect("a few thousand");
    assert_eq!(numbers, (1..=all).collect::<Vec<_>>(), "each counted once");
    let counted = process.connect().line("GET n");
    assert_eq!(counted, Value::bulk(&all.to_string()));
}

#[test]
fn every_command_of_the_guide_to_retries_does_what_it_says() {
    if !have("redis-cli", "the guide to retries") {
        return;
    }
    let text = std::fs::read_to_string(repository().join("docs/retries.md")).expect("a page");
    let steps = steps(&text, "sh test");
    assert!(steps.len() >= 4, "the page has commands");
    let process = Start::node().ready();
    let port = process.resp().port().to_string();
    for step in steps {
        let folder = process.folder().display();
        let line = step.command.replace("7379", &port);
        let said = shell(&format!("cd {folder}; {line}"));
        if let Some(promise) = step.promise {
            assert_eq!(said.trim(), promise, "{}", step.command);
        }
    }
}
