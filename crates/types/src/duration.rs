//! The duration grammar of `older_than`: `1*( 1*DIGIT ("h"/"m"/"s") )`, each
//! unit at most once, in the order h, m, s.

use std::time::Duration;

/// Parses `2h`, `90s`, `1h30m`. A zero length is refused: it would name
/// every session.
#[must_use]
pub fn parse(text: &str) -> Option<Duration> {
    const UNITS: [(char, u64); 3] = [('h', 3600), ('m', 60), ('s', 1)];
    let mut rest = text;
    let mut next_unit = 0;
    let mut seconds: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let amount: u64 = rest.get(..digits)?.parse().ok()?;
        let unit = rest[digits..].chars().next()?;
        let index = UNITS.iter().position(|(name, _)| *name == unit)?;
        if index < next_unit {
            return None;
        }
        next_unit = index + 1;
        seconds = seconds.checked_add(amount.checked_mul(UNITS[index].1)?)?;
        rest = &rest[digits + 1..];
    }
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar() {
        assert_eq!(parse("2h"), Some(Duration::from_secs(7200)));
        assert_eq!(parse("90s"), Some(Duration::from_secs(90)));
        assert_eq!(parse("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(parse("1h2m3s"), Some(Duration::from_secs(3723)));
        for bad in ["", "0s", "0h0m", "1", "h", "1x", "30m1h", "1h1h", "-1s", "1 h", "99999999999999999999h", "1\u{fc}"]
        {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
