//! From the steps of a model to what is told of them: of what time an output is, and every how many steps one is told.

use serde::{Deserialize, Serialize};
use ssm_models::{Info, Signal};
use std::collections::VecDeque;

/// Begin and end of a step, in ns.
pub(crate) type Span = (u64, u64);

/// What an `inference-interval` of 0 stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Zero {
    /// Each step is told.
    Each,
    /// One a second.
    Second,
}

/// Every how many steps of a model one is told.
pub(crate) fn every(info: &Info, (interval, zero): (u32, Zero)) -> u32 {
    match info.input {
        // Its steps are that long by themselves.
        Signal::Samples { .. } if info.facts.paced => 1,
        Signal::Samples { hop, rate } if interval == 0 && zero == Zero::Second => (rate / hop.max(1) as u32).max(1),
        Signal::Samples { .. } => interval.max(1),
        _ => 1,
    }
}

/// Steps on the way to what is told of them. A value: it goes into snapshots as text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pace {
    /// Steps whose output has not come, oldest first.
    waiting: VecDeque<Span>,
    /// Outputs since the last one that was told.
    since: u32,
    /// The model's number of the last step.
    taken: u64,
}

impl Pace {
    /// One from its text; times that cannot be would overflow later.
    ///
    /// # Errors
    /// The text is not a pace's.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let pace: Self = serde_json::from_str(text).map_err(|e| e.to_string())?;
        match pace.waiting.iter().find(|(start, end)| *start >= 1 << 62 || *end >= 1 << 62) {
            Some((start, end)) => Err(format!("a step from {start} to {end} ns")),
            None => Ok(pace),
        }
    }

    /// Whether it is that of a fresh stream.
    pub(crate) fn is_fresh(&self) -> bool {
        *self == Self::default()
    }

    /// The model took step number `taken`, of the time `span`. Returns the step that its output is of, if it is to be told:
    /// `look_ahead` steps before, each `every`-th.
    pub(crate) fn step(&mut self, (look_ahead, every): (usize, u32), span: Span, taken: u64) -> Option<Span> {
        self.taken = taken;
        self.waiting.push_back(span);
        if self.waiting.len() > look_ahead { self.told(every) } else { None }
    }

    /// The model told of the oldest step of which it had not, when no more come. As [`Pace::step`], with the number of the
    /// last step.
    pub(crate) fn after(&mut self, every: u32) -> Option<(Span, u64)> {
        Some((self.told(every)?, self.taken))
    }

    fn told(&mut self, every: u32) -> Option<Span> {
        let span = self.waiting.pop_front()?;
        self.since += 1;
        if self.since < every {
            return None;
        }
        self.since = 0;
        Some(span)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_is_of_a_step_before() {
        let mut pace = Pace::default();
        let told: Vec<_> = (0..5).map(|t| pace.step((2, 1), (t * 10, t * 10 + 10), t + 1)).collect();
        assert_eq!(told, [None, None, Some((0, 10)), Some((10, 20)), Some((20, 30))]);
        assert_eq!([pace.after(1), pace.after(1), pace.after(1)], [Some(((30, 40), 5)), Some(((40, 50), 5)), None]);
    }

    #[test]
    fn one_of_so_many_is_told_also_across_a_snapshot() {
        let mut pace = Pace::default();
        let mut told = Vec::new();
        for t in 0..7 {
            told.extend(pace.step((1, 3), (t, t + 1), t));
            let text = serde_json::to_string(&pace).expect("it is a value");
            pace = Pace::parse(&text).expect("it is its own text");
        }
        assert_eq!(told, [(2, 3), (5, 6)]);
        assert!(Pace::parse(r#"{"waiting":[[0,9223372036854775807]],"since":0,"taken":0}"#).is_err());
    }
}
