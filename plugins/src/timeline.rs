//! What a buffer's time says about the stream: that it goes on, that something is missing, or that it begins anew.

use gst::ClockTime;
use gst::prelude::*;

/// What happens to the state where time passes without input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstSsmGapPolicy")]
pub enum GapPolicy {
    /// The state ages by the model's rule for the time that is missing.
    #[default]
    #[enum_value(name = "Step: the state ages by the time that is missing", nick = "step")]
    Step,
    /// The state is kept as it is.
    #[enum_value(name = "Hold: the state is kept as it is", nick = "hold")]
    Hold,
    /// The state starts anew.
    #[enum_value(name = "Reset: the state starts anew", nick = "reset")]
    Reset,
}

/// What gives the stream a fresh state.
#[glib::flags(name = "GstSsmResetOn")]
pub enum ResetOn {
    /// FLUSH_STOP.
    #[flags_value(name = "Flush: a flush, as by a seek", nick = "flush")]
    FLUSH = 1,
    /// A SEGMENT event that differs from the one before.
    #[flags_value(name = "Segment: another segment", nick = "segment")]
    SEGMENT = 1 << 1,
    /// [`Follows::Jump`].
    #[flags_value(name = "Jump: timestamps go back, or further on than max-gap", nick = "jump")]
    JUMP = 1 << 2,
    /// A CAPS event.
    #[flags_value(name = "Caps: other caps", nick = "caps")]
    CAPS = 1 << 3,
    /// End of stream.
    #[flags_value(name = "EOS: the end of stream", nick = "eos")]
    EOS = 1 << 4,
    /// The flag that sources set where they say that something is missing.
    #[flags_value(name = "Discont: a buffer with the flag DISCONT", nick = "discont")]
    DISCONT = 1 << 5,
}

impl Default for ResetOn {
    /// All but the flag, which is set where nothing is missing, too.
    fn default() -> Self {
        Self::all() - Self::DISCONT
    }
}

/// Whether two segments say the same of what lies in them; how far one has been played is not theirs to say.
pub(crate) fn same(a: &gst::Segment, b: &gst::Segment) -> bool {
    let all = |s: &gst::Segment| (s.flags(), s.format(), s.base(), s.offset(), s.start(), s.stop(), s.time());
    (a.rate(), a.applied_rate()) == (b.rate(), b.applied_rate()) && all(a) == all(b)
}

/// How a buffer follows the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follows {
    /// It is where it was expected, or carries no time.
    On,
    /// So much time is missing before it.
    Gap(ClockTime),
    /// Later than the longest gap, or earlier than what came before: another place of the stream.
    Jump,
}

/// Compares a buffer's time with the time expected after the buffer before. Differences up to `tolerance` are jitter of
/// clocks; a DISCONT flag says nothing here, since it is set where nothing is missing and not set where something is.
pub fn follows(
    expected: Option<ClockTime>,
    pts: Option<ClockTime>,
    tolerance: ClockTime,
    max_gap: ClockTime,
) -> Follows {
    let (Some(expected), Some(pts)) = (expected, pts) else { return Follows::On };
    if pts > expected.saturating_add(tolerance) {
        let missing = pts - expected;
        if missing > max_gap { Follows::Jump } else { Follows::Gap(missing) }
    } else if pts.saturating_add(tolerance) < expected {
        Follows::Jump
    } else {
        Follows::On
    }
}

/// Times of samples that are counted: where the count began, and samples since. It follows a sender whose clock goes slower or
/// faster than its samples say.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Samples a second.
    rate: u64,
    /// Time of sample `before`.
    origin: Option<ClockTime>,
    /// Samples that were counted before `origin`.
    before: u64,
}

impl Clock {
    /// Of the length of a buffer, by which its time is followed: far more than clocks of quartz differ.
    const SLACK: u64 = 1000;

    /// A clock that has no time yet.
    pub fn new(rate: u32) -> Self {
        Self { rate: u64::from(rate), origin: None, before: 0 }
    }

    /// The time of `n` samples.
    pub fn length(&self, n: u64) -> ClockTime {
        let ns = n.mul_div_floor(*ClockTime::SECOND, self.rate).unwrap_or(u64::MAX - 1);
        ClockTime::from_nseconds(ns.min(u64::MAX - 1))
    }

    /// Sample `before` is at `pts`; without one there is no time.
    pub fn begin(&mut self, pts: Option<ClockTime>, before: u64) {
        (self.origin, self.before) = (pts, before);
    }

    /// What it began with, for [`Clock::begin`].
    pub fn place(&self) -> Option<(ClockTime, u64)> {
        self.origin.map(|origin| (origin, self.before))
    }

    /// Whether there is a time.
    pub fn has_time(&self) -> bool {
        self.origin.is_some()
    }

    /// Time of sample `n`, 0 for one that lies before.
    pub fn time(&self, n: u64) -> Option<ClockTime> {
        let origin = self.origin?;
        Some(match n.checked_sub(self.before) {
            Some(since) => origin.saturating_add(self.length(since)),
            None => origin.saturating_sub(self.length(self.before - n)),
        })
    }

    /// A buffer of `samples` that begins with sample `n` says `pts`: where that is off by more than a sample, the times that
    /// come move towards it, by a thousandth of the buffer at most.
    pub fn follow(&mut self, n: u64, pts: Option<ClockTime>, samples: u64) {
        let (Some(origin), Some(expected), Some(pts)) = (self.origin, self.time(n), pts) else { return };
        let step = self.length(samples) / Self::SLACK;
        let still = self.length(1);
        self.origin = Some(if pts > expected.saturating_add(still) {
            origin.saturating_add(step.min(pts - expected - still))
        } else if pts.saturating_add(still) < expected {
            let back = step.min(expected - pts - still);
            match origin.checked_sub(back) {
                Some(origin) => origin,
                // A time before 0 there is not: counted from here, where there is one.
                None => {
                    self.before = n;
                    expected.saturating_sub(back)
                }
            }
        } else {
            origin
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_counts_both_ways() {
        let mut clock = Clock::new(16_000);
        assert_eq!(clock.time(5), None);
        clock.begin(Some(ClockTime::from_mseconds(2)), 48);
        assert_eq!(clock.time(48), Some(ClockTime::from_mseconds(2)));
        assert_eq!(clock.time(64), Some(ClockTime::from_mseconds(3)));
        assert_eq!(clock.time(32), Some(ClockTime::from_mseconds(1)));
        assert_eq!(clock.time(0), Some(ClockTime::ZERO));
        assert!(clock.time(u64::MAX).is_some());
    }

    #[test]
    fn a_clock_follows_drift_and_not_jitter() {
        // Hours of a clock that is off by 300 parts in a million, either way, with jitter of 20 ms.
        for (parts, start) in
            [-300_i64, 0, 300].into_iter().flat_map(|p| [0, 5_000_000, 100_000_000_000].map(|s| (p, s)))
        {
            let mut clock = Clock::new(16_000);
            clock.begin(Some(ClockTime::from_nseconds(start as u64)), 0);
            for i in 0..600_000_u64 {
                let true_ns = start + (i * 10_000_000) as i64 + i as i64 * 10 * parts;
                let jitter = if i % 2 == 0 { 20_000_000 } else { -20_000_000 };
                let pts = ClockTime::from_nseconds((true_ns + jitter).max(0) as u64);
                clock.follow(i * 160, Some(pts), 160);
                let off = clock.time(i * 160).expect("it has begun").nseconds() as i64 - true_ns;
                assert!(off.abs() < 20_500_000, "{parts} from {start}: {off} ns off at {i}");
            }
        }
        // What is exact stays exact, and what is off by rounding, too.
        let mut clock = Clock::new(16_000);
        clock.begin(Some(ClockTime::from_nseconds(7)), 0);
        for i in 0..1000_u64 {
            clock.follow(i * 160, Some(ClockTime::from_nseconds(7 + i * 10_000_000 + i % 3)), 160);
        }
        assert_eq!(clock.time(0), Some(ClockTime::from_nseconds(7)));
    }

    #[test]
    fn jitter_gaps_and_jumps_are_told_apart() {
        let ms = ClockTime::from_mseconds;
        let at = |pts| follows(Some(ms(1000)), Some(ms(pts)), ms(20), ms(500));
        assert_eq!(at(1000), Follows::On);
        assert_eq!(at(1020), Follows::On);
        assert_eq!(at(980), Follows::On);
        assert_eq!(at(1021), Follows::Gap(ms(21)));
        assert_eq!(at(1500), Follows::Gap(ms(500)));
        assert_eq!(at(1501), Follows::Jump);
        assert_eq!(at(979), Follows::Jump);
        assert_eq!(follows(None, Some(ms(5)), ms(0), ms(0)), Follows::On);
        assert_eq!(follows(Some(ms(5)), None, ms(0), ms(0)), Follows::On);
        let end = ClockTime::MAX;
        assert_eq!(follows(Some(end), Some(end), end, end), Follows::On);
        assert_eq!(follows(Some(end), Some(ms(5)), ms(1), end), Follows::Jump);
        assert_eq!(follows(Some(ms(5)), Some(end), ms(1), end), Follows::Gap(end - ms(5)));
    }
}
