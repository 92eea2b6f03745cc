//! Numbers of the command line, within what makes sense.

use clap::builder::RangedU64ValueParser;

/// Reads a finite number of `low` to `high`.
pub fn within(low: f64, high: f64) -> impl Fn(&str) -> Result<f64, String> + Clone + Send + Sync + 'static {
    move |text| {
        let number = text.parse::<f64>().ok().filter(|v| (low..=high).contains(v));
        number.ok_or_else(|| format!("expected a number of {low} to {high}"))
    }
}

/// Reads a number of threads.
pub fn threads() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=256)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_within_are_taken() {
        let read = within(0.0, 1.0);
        assert_eq!(read("0.25"), Ok(0.25));
        for bad in ["nan", "inf", "-inf", "-0.1", "1.1", "", "x"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
