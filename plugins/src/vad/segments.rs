//! From a probability for each step to stretches of speech.

use gst::ClockTime;

/// When speech begins and ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Steps of this probability or a higher one are speech.
    pub(crate) threshold: f64,
    /// Shorter stretches of speech are not told.
    pub(crate) min_speech: ClockTime,
    /// Shorter pauses are part of the speech around them.
    pub(crate) min_silence: ClockTime,
}

/// What there is to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Speech began.
    Start(ClockTime),
    /// The speech that began at the first time ended at the second.
    End(ClockTime, ClockTime),
}

/// Where a stream stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Segments {
    /// When the speech began that was told.
    pub(crate) open: Option<ClockTime>,
    /// Since when the steps have been speech, without speech being told yet; while it is told: since when they have
    /// been none.
    pub(crate) since: Option<ClockTime>,
}

impl Segments {
    /// A step of `probability` for the time from `start` to `end`.
    pub(crate) fn step(&mut self, rules: &Rules, probability: f64, start: ClockTime, end: ClockTime) -> Option<Turn> {
        if (probability >= rules.threshold) == self.open.is_some() {
            self.since = None;
            return None;
        }
        // A time that lies ahead is of another clock: the state came from another process.
        let since = self.since.filter(|since| *since <= start).unwrap_or(start);
        self.since = Some(since);
        let enough = if self.open.is_some() { rules.min_silence } else { rules.min_speech };
        if end.saturating_sub(since) < enough {
            return None;
        }
        self.since = None;
        Some(match self.open.take() {
            // As above.
            Some(begun) => Turn::End(begun.min(since), since),
            None => {
                self.open = Some(since);
                Turn::Start(since)
            }
        })
    }

    /// Nothing came from `from` to `to`: silence.
    pub(crate) fn gap(&mut self, rules: &Rules, from: ClockTime, to: ClockTime) -> Option<Turn> {
        self.step(rules, f64::NEG_INFINITY, from, to)
    }

    /// The stream ended at `at`: speech that is being told ends where its last pause began, else there.
    pub(crate) fn end(&mut self, at: ClockTime) -> Option<Turn> {
        let (open, since) = (self.open.take(), self.since.take());
        let end = since.unwrap_or(at).min(at);
        open.map(|begun| Turn::End(begun.min(end), end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> ClockTime {
        ClockTime::from_mseconds(n)
    }

    /// Turns of steps of 10 ms.
    fn turns(rules: &Rules, steps: &str) -> Vec<Turn> {
        let mut s = Segments::default();
        let mut turns: Vec<Turn> = (0..)
            .zip(steps.chars())
            .filter_map(|(i, c)| s.step(rules, if c == '#' { 0.9 } else { 0.1 }, ms(10 * i), ms(10 * i + 10)))
            .collect();
        turns.extend(s.end(ms(10 * steps.len() as u64)));
        assert_eq!(s, Segments::default(), "nothing is left at the end");
        turns
    }

    #[test]
    fn short_speech_and_short_pauses_are_passed_over() {
        use Turn::{End, Start};
        let rules = Rules { threshold: 0.5, min_speech: ms(30), min_silence: ms(40) };
        assert_eq!(turns(&rules, "..##...#.##.."), []);
        assert_eq!(turns(&rules, "..###......"), [Start(ms(20)), End(ms(20), ms(50))]);
        assert_eq!(turns(&rules, "..###...##....#.."), [Start(ms(20)), End(ms(20), ms(100))]);
        assert_eq!(turns(&rules, "..####"), [Start(ms(20)), End(ms(20), ms(60))]);
        assert_eq!(turns(&rules, "..####.."), [Start(ms(20)), End(ms(20), ms(60))]);
        let at_once = Rules { min_speech: ms(0), min_silence: ms(0), ..rules };
        assert_eq!(turns(&at_once, ".#.#"), [Start(ms(10)), End(ms(10), ms(20)), Start(ms(30)), End(ms(30), ms(40))]);
    }

    #[test]
    fn a_gap_is_silence() {
        let rules = Rules { threshold: 0.5, min_speech: ms(10), min_silence: ms(40) };
        let mut s = Segments::default();
        assert_eq!(s.step(&rules, 1.0, ms(0), ms(10)), Some(Turn::Start(ms(0))));
        assert_eq!(s.gap(&rules, ms(10), ms(30)), None);
        assert_eq!(s.gap(&rules, ms(30), ms(60)), Some(Turn::End(ms(0), ms(10))));
    }
}
