//! What a buffer's time says about the stream: that it goes on, that something is missing, or that it begins anew.

use gst::ClockTime;

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

#[cfg(test)]
mod tests {
    use super::*;

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
