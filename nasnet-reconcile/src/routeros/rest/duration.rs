//! Durations as RouterOS prints them.

/// Parses `1w2d3h4m5s`, `1d02:03:04` and plain seconds into milliseconds.
pub(crate) fn parse_ms(text: &str) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    let mut total: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let number: u64 = rest[..digits].parse().ok()?;
        let tail = &rest[digits..];
        if tail.starts_with(':') {
            return total.checked_add(clock_ms(rest)?);
        }
        let (unit_ms, used) = match tail {
            "" => (1_000, 0),
            t if t.starts_with("ms") => (1, 2),
            t if t.starts_with('w') => (604_800_000, 1),
            t if t.starts_with('d') => (86_400_000, 1),
            t if t.starts_with('h') => (3_600_000, 1),
            t if t.starts_with('m') => (60_000, 1),
            t if t.starts_with('s') => (1_000, 1),
            _ => return None,
        };
        total = total.checked_add(number.checked_mul(unit_ms)?)?;
        rest = &tail[used..];
    }
    Some(total)
}

fn clock_ms(text: &str) -> Option<u64> {
    let mut parts = text.split(':');
    let (hours, minutes) = (parts.next()?.parse::<u64>().ok()?, parts.next()?.parse::<u64>().ok()?);
    let seconds = match parts.next() {
        Some(seconds) => seconds.parse::<u64>().ok()?,
        None => 0,
    };
    if parts.next().is_some() || minutes > 59 || seconds > 59 {
        return None;
    }
    hours.checked_mul(3_600_000)?.checked_add(minutes * 60_000 + seconds * 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_in_every_spelling() {
        let cases = [
            ("4m5s", Some(245_000)),
            ("1w2d3h4m5s", Some(604_800_000 + 2 * 86_400_000 + 3 * 3_600_000 + 245_000)),
            ("1d02:03:04", Some(86_400_000 + 2 * 3_600_000 + 184_000)),
            ("00:00:25", Some(25_000)),
            ("00:10", Some(600_000)),
            ("25", Some(25_000)),
            ("150ms", Some(150)),
            ("", None),
            ("never", None),
            ("5x", None),
            ("é", None),
            ("99999999999999999999s", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_ms(text), expected, "{text:?}");
        }
    }
}
