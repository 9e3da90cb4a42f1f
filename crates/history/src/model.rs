//! What one key does: the state that an order of operations leads through.

use std::collections::HashMap;

use crate::operation::{Action, Operation, Outcome, Value};

/// Contents of a key. Numbers are told apart so that `"7"` and an incremented 6 are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Content {
    /// Nobody has said yet: explains any answer, and is then what was answered.
    Any,
    Absent,
    Number(i64),
    /// A text, by its place in [`Texts`].
    Text(u32),
}

/// A key between two operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) content: Content,
    /// Between which instants the contents vanish, in nanoseconds.
    expires: Option<(u64, u64)>,
}

impl State {
    pub(crate) const ABSENT: Self = Self::lasting(Content::Absent);
    pub(crate) const ANY: Self = Self::lasting(Content::Any);

    const fn lasting(content: Content) -> Self {
        Self {
            content,
            expires: None,
        }
    }
}

/// Texts by number.
#[derive(Debug, Default)]
struct Texts(HashMap<Value, u32>);

impl Texts {
    fn content(&mut self, value: &Value) -> Content {
        let text = std::str::from_utf8(value).unwrap_or_default();
        // Only the one spelling that the store writes is a number.
        if let Some(number) = text.parse::<i64>().ok().filter(|n| n.to_string() == text) {
            return Content::Number(number);
        }
        let next = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        Content::Text(*self.0.entry(Value::clone(value)).or_insert(next))
    }

    fn maybe(&mut self, value: Option<&Value>) -> Content {
        value.map_or(Content::Absent, |value| self.content(value))
    }
}

/// An operation in terms of contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A `Get` that answered this.
    Found(Content),
    Set(Content, Option<u64>),
    /// With what it answered, if that is known.
    CompareAndSet(Content, Content, Option<bool>),
    Increment(i64, Option<i64>),
    Delete(Option<bool>),
    /// Answers that nothing explains.
    Never,
}

/// An operation as the search sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub(crate) called: u64,
    pub(crate) returned: u64,
    called_nanos: u64,
    returned_nanos: u64,
    step: Step,
}

impl Event {
    /// What makes two open operations of different times different.
    pub(crate) const fn kind(&self) -> (Step, u64) {
        match self.step {
            // Its deadline counts from its call.
            Step::Set(_, Some(_)) => (self.step, self.called),
            Step::Found(_)
            | Step::Set(_, None)
            | Step::CompareAndSet(..)
            | Step::Increment(..)
            | Step::Delete(_)
            | Step::Never => (self.step, 0),
        }
    }

    /// Whether what it makes of a key depends on what was there.
    pub(crate) const fn depends_on_state(&self) -> bool {
        matches!(self.step, Step::CompareAndSet(..) | Step::Increment(..))
    }
}

/// Turns operations into events and says what states they lead to.
#[derive(Debug)]
pub(crate) struct Model {
    texts: Texts,
    /// How far any clock that decides about expiry may be from the recorder's, in nanoseconds.
    clock_error_nanos: u64,
}

impl Model {
    pub(crate) fn new(clock_error_nanos: u64) -> Self {
        Self {
            texts: Texts::default(),
            clock_error_nanos,
        }
    }

    /// The event of an operation; one that is open never returns.
    pub(crate) fn event(&mut self, operation: &Operation) -> Event {
        let is_open = operation.is_open();
        Event {
            called: operation.called,
            returned: if is_open {
                u64::MAX
            } else {
                operation.returned
            },
            called_nanos: operation.called_nanos,
            returned_nanos: if is_open {
                u64::MAX
            } else {
                operation.returned_nanos
            },
            step: self.step(operation),
        }
    }

    fn step(&mut self, operation: &Operation) -> Step {
        let texts = &mut self.texts;
        match (&operation.action, &operation.outcome) {
            (Action::Get, Outcome::Value(value)) => Step::Found(texts.maybe(value.as_ref())),
            (Action::Set { value, ttl_millis }, Outcome::Done | Outcome::Unknown) => {
                Step::Set(texts.content(value), *ttl_millis)
            }
            (Action::CompareAndSet { expected, value }, outcome) => {
                let expected = texts.maybe(expected.as_ref());
                let value = texts.content(value);
                if let Outcome::Applied(applied) = outcome {
                    Step::CompareAndSet(expected, value, Some(*applied))
                } else if *outcome == Outcome::Unknown {
                    Step::CompareAndSet(expected, value, None)
                } else {
                    Step::Never
                }
            }
            (Action::Increment { by }, Outcome::Number(number)) => {
                Step::Increment(*by, Some(*number))
            }
            (Action::Increment { by }, Outcome::Unknown) => Step::Increment(*by, None),
            (Action::Delete, Outcome::Applied(found)) => Step::Delete(Some(*found)),
            (Action::Delete, Outcome::Unknown) => Step::Delete(None),
            _ => Step::Never,
        }
    }

    /// The states that an event can lead to from a state: none if the state does not explain its
    /// answer; two where a deadline may have passed or not.
    pub(crate) fn after(&self, state: State, event: &Event, mut each: impl FnMut(State)) {
        let Some((earliest, latest)) = state.expires else {
            if let Some(next) = self.apply(state, event) {
                each(next);
            }
            return;
        };
        if event.called_nanos <= latest
            && let Some(next) = self.apply(state, event)
        {
            each(next);
        }
        if earliest <= event.returned_nanos
            && let Some(next) = self.apply(State::ABSENT, event)
        {
            each(next);
        }
    }

    fn apply(&self, state: State, event: &Event) -> Option<State> {
        let content = state.content;
        let is_any = content == Content::Any;
        match event.step {
            Step::Found(found) if is_any => Some(State::lasting(found)),
            Step::Found(found) => (found == content).then_some(state),
            Step::Set(value, ttl_millis) => Some(State {
                content: value,
                expires: ttl_millis.map(|millis| self.window(event, millis)),
            }),
            Step::CompareAndSet(expected, value, answer) => {
                let holds = expected == content;
                match answer {
                    Some(true) => (holds || is_any).then_some(State::lasting(value)),
                    Some(false) => (!holds).then_some(state),
                    None => (holds || is_any).then_some(State::lasting(value)),
                }
            }
            Step::Increment(by, answer) => {
                let before = match content {
                    Content::Absent => 0,
                    Content::Number(number) => number,
                    Content::Any => {
                        let number = answer.map_or(Content::Any, Content::Number);
                        return Some(State::lasting(number));
                    }
                    Content::Text(_) => return None,
                };
                let number = before.checked_add(by)?;
                let is_explained = answer.is_none_or(|answer| answer == number);
                is_explained.then_some(State {
                    content: Content::Number(number),
                    ..state
                })
            }
            Step::Delete(answer) => {
                let exists = content != Content::Absent;
                let is_explained = is_any || answer.is_none_or(|found| found == exists);
                is_explained.then_some(State::ABSENT)
            }
            Step::Never => None,
        }
    }

    /// Between which instants the deadline lies that this event sets.
    fn window(&self, event: &Event, ttl_millis: u64) -> (u64, u64) {
        let nanos = ttl_millis.saturating_mul(1_000_000);
        let earliest = event.called_nanos.saturating_add(nanos);
        let latest = event.returned_nanos.saturating_add(nanos);
        (
            earliest.saturating_sub(self.clock_error_nanos),
            latest.saturating_add(self.clock_error_nanos),
        )
    }
}
