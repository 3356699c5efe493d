//! The spellings routers use for numbers, spans, rates, sizes and addresses, read into values and printed one way.
//!
//! Every function here is total: text that is not a value of the type is `None`, never a panic.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::value::{IpRange, Mac, RangeSet};

const UNITS: [(&str, u64); 8] = [
    ("w", 604_800_000_000_000),
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

pub(crate) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "yes" | "true" => Some(true),
        "no" | "false" => Some(false),
        _ => None,
    }
}

/// Decimal, or hexadecimal after `0x`.
pub(crate) fn parse_int(text: &str) -> Option<i64> {
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let magnitude = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) if all_digits(hex, 16) => i128::from_str_radix(hex, 16).ok()?,
        None if all_digits(digits, 10) => digits.parse::<i128>().ok()?,
        _ => return None,
    };
    i64::try_from(if negative { -magnitude } else { magnitude }).ok()
}

fn all_digits(text: &str, radix: u32) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_digit(radix))
}

/// `1w2d3h4m5s6ms7us8ns`, `1w1d00:00:05.5`, `hh:mm:ss`, `mm:ss`, and plain seconds.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total: u64 = 0;
    let mut next_unit = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let clock_or_seconds =
            rest.contains(':') && !rest[..rest.find(':')?].contains(|c: char| c.is_ascii_alphabetic());
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        if clock_or_seconds || digits == rest.len() || rest[digits..].starts_with('.') {
            total = total.checked_add(parse_clock(rest)?)?;
            break;
        }
        let count: u64 = rest[..digits].parse().ok()?;
        let word_end = rest[digits..].find(|c: char| !c.is_ascii_alphabetic()).map_or(rest.len(), |end| digits + end);
        // Units must fall, so `5s1w` is no duration and nothing is counted twice.
        let at = UNITS[next_unit..].iter().position(|(unit, _)| *unit == &rest[digits..word_end])? + next_unit;
        total = total.checked_add(count.checked_mul(UNITS[at].1)?)?;
        next_unit = at + 1;
        rest = &rest[word_end..];
    }
    Some(Duration::from_nanos(total))
}

/// `hh:mm:ss.f`, `mm:ss` or plain seconds, in nanoseconds.
fn parse_clock(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut seconds: u64 = 0;
    let parts: Vec<&str> = whole.split(':').collect();
    if parts.len() > 3 || (text.contains('.') && !all_digits(fraction, 10)) || fraction.len() > 9 {
        return None;
    }
    for (at, part) in parts.iter().enumerate() {
        let value: u64 = if all_digits(part, 10) { part.parse().ok()? } else { return None };
        if at > 0 && value > 59 {
            return None;
        }
        seconds = seconds.checked_mul(60)?.checked_add(value)?;
    }
    let nanos: u64 = if fraction.is_empty() { 0 } else { format!("{fraction:0<9}").parse().ok()? };
    seconds.checked_mul(UNITS[4].1)?.checked_add(nanos)
}

/// Prints as `1w2d3h4m5s6ms7us8ns`, leaving out what is zero.
pub(crate) fn print_duration(duration: Duration) -> String {
    let mut left = duration.as_nanos();
    if left == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (unit, nanos) in UNITS {
        let count = left / u128::from(nanos);
        left %= u128::from(nanos);
        if count > 0 {
            text.push_str(&format!("{count}{unit}"));
        }
    }
    text
}

/// Plain, or scaled by `k`, `M`, `G`, `T` in thousands; `bps` may follow.
pub(crate) fn parse_rate(text: &str) -> Option<u64> {
    let text = text.strip_suffix("bps").unwrap_or(text);
    scaled(text, &[("k", 1_000), ("K", 1_000), ("M", 1_000_000), ("G", 1_000_000_000), ("T", 1_000_000_000_000)])
}

/// Prints with the largest unit that divides the rate.
pub(crate) fn print_rate(rate: u64) -> String {
    for (unit, scale) in [("T", 1_000_000_000_000), ("G", 1_000_000_000), ("M", 1_000_000), ("k", 1_000)] {
        if rate > 0 && rate.is_multiple_of(scale) {
            return format!("{}{unit}", rate / scale);
        }
    }
    rate.to_string()
}

/// Plain, or scaled by `k`, `M`, `G`, `T` in steps of 1024; `i`, `B` and `iB` may follow.
pub(crate) fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.strip_suffix('B').unwrap_or(text);
    let text =
        text.strip_suffix('i').filter(|scaled| scaled.ends_with(|c: char| c.is_ascii_alphabetic())).unwrap_or(text);
    scaled(text, &[("k", 1 << 10), ("K", 1 << 10), ("M", 1 << 20), ("G", 1 << 30), ("T", 1 << 40)])
}

/// A number with up to nine decimals times its unit; what does not come out whole is no value.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (number, scale) = units
        .iter()
        .find_map(|(unit, scale)| text.strip_suffix(unit).map(|number| (number, *scale)))
        .unwrap_or((text, 1));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if !all_digits(whole, 10) || (number.contains('.') && !all_digits(fraction, 10)) || fraction.len() > 9 {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(scale)?;
    if fraction.is_empty() {
        return Some(whole);
    }
    let parts = fraction.parse::<u128>().ok()?.checked_mul(u128::from(scale))?;
    let unit = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    if parts % unit != 0 {
        return None;
    }
    whole.checked_add(u64::try_from(parts / unit).ok()?)
}

/// Any case, with `:`, `-`, `.` or nothing between.
pub(crate) fn parse_mac(text: &str) -> Option<Mac> {
    let group = match text.len() {
        12 => 12,
        14 => 4,
        17 => 2,
        _ => return None,
    };
    let separators: &[char] = if group == 4 { &['.'] } else { &[':', '-'] };
    let mut separator = None;
    let mut digits = Vec::with_capacity(12);
    for (at, c) in text.chars().enumerate() {
        if group < 12 && at % (group + 1) == group {
            if !separators.contains(&c) || *separator.get_or_insert(c) != c {
                return None;
            }
        } else {
            digits.push(u8::try_from(c.to_digit(16)?).ok()?);
        }
    }
    let mut bytes = [0; 6];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair[0] << 4 | pair[1];
    }
    (digits.len() == 12).then_some(Mac(bytes))
}

pub(crate) fn parse_ip(text: &str) -> Option<IpAddr> {
    text.parse().ok()
}

/// `address/length`, `address/netmask`, or an address alone, which is one host.
pub(crate) fn parse_prefix(text: &str) -> Option<IpNet> {
    let Some((address, mask)) = text.split_once('/') else {
        return parse_ip(text).map(IpNet::from);
    };
    match address.parse::<IpAddr>().ok()? {
        IpAddr::V4(address) => {
            let length = match mask.parse::<Ipv4Addr>() {
                Ok(netmask) => ipnet::ipv4_mask_to_prefix(netmask).ok()?,
                Err(_) => prefix_length(mask)?,
            };
            Ipv4Net::new(address, length).ok().map(IpNet::V4)
        }
        IpAddr::V6(address) => {
            let length = match mask.parse::<Ipv6Addr>() {
                Ok(netmask) => ipnet::ipv6_mask_to_prefix(netmask).ok()?,
                Err(_) => prefix_length(mask)?,
            };
            Ipv6Net::new(address, length).ok().map(IpNet::V6)
        }
    }
}

fn prefix_length(text: &str) -> Option<u8> {
    if all_digits(text, 10) { text.parse().ok() } else { None }
}

/// `first-last`.
pub(crate) fn parse_ip_range(text: &str) -> Option<IpRange> {
    let (first, last) = text.split_once('-')?;
    IpRange::new(parse_ip(first)?, parse_ip(last)?)
}

/// `a,b,c-d`.
pub(crate) fn parse_ranges(text: &str) -> Option<RangeSet> {
    let number = |text: &str| if all_digits(text, 10) { text.parse::<u32>().ok() } else { None };
    let mut spans = Vec::new();
    for part in text.split(',').map(str::trim) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return None;
        }
        spans.push((first, last));
    }
    Some(RangeSet::new(spans))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_duration_means_the_same() {
        for (spellings, seconds) in [
            (&["1d", "24h", "1d00:00:00", "24:00:00", "86400", "86400s", "1440m", "23h60m"][..], 86_400.0),
            (&["1w2d3h4m5s", "1w2d03:04:05", "9d3h4m5s"][..], 788_645.0),
            (&["500ms", "0.5", "00:00:00.5", "00:00.500"][..], 0.5),
            (&["0s", "0", "00:00:00", "0ms"][..], 0.0),
            (&["1m30s", "90", "1:30", "00:01:30"][..], 90.0),
        ] {
            for spelling in spellings {
                assert_eq!(parse_duration(spelling), Some(Duration::from_secs_f64(seconds)), "{spelling}");
            }
        }
        for bad in [
            "",
            "s",
            "5x",
            "5s1w",
            "1s1s",
            "1:2:3:4",
            "00:60",
            "-5s",
            "1..5",
            "1.",
            ".",
            "99999999999999w",
            "é",
            "5é",
            "1d:",
        ] {
            assert_eq!(parse_duration(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn rates_count_in_thousands_and_sizes_in_1024() {
        for (text, rate) in [("500k", 500_000), ("1.5M", 1_500_000), ("10Mbps", 10_000_000), ("0", 0), ("7", 7)] {
            assert_eq!(parse_rate(text), Some(rate), "{text}");
        }
        for (text, size) in [("64KiB", 65_536), ("64k", 65_536), ("1.5MiB", 1_572_864), ("12B", 12), ("1Gi", 1 << 30)] {
            assert_eq!(parse_bytes(text), Some(size), "{text}");
        }
        for bad in ["", "k", "1.k", ".5k", "1.0001k", "-1", "1e3", "99999999999T", "i", "iB"] {
            assert_eq!((parse_rate(bad), parse_bytes(bad)), (None, None), "{bad:?}");
        }
    }

    #[test]
    fn a_mac_reads_in_any_case_and_separation() {
        let mac = Some(Mac([0xaa, 0xbb, 0xcc, 0, 1, 2]));
        for text in ["AA:BB:CC:00:01:02", "aa-bb-cc-00-01-02", "aabb.cc00.0102", "AABBCC000102"] {
            assert_eq!(parse_mac(text), mac, "{text}");
        }
        for bad in [
            "",
            "AA:BB:CC:00:01",
            "AA:BB:CC:00:01:0G",
            "AA:BB-CC:00:01:02",
            "AA.BB.CC.00.01.02",
            "éééééé",
            "AABBCC00010 ",
        ] {
            assert_eq!(parse_mac(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn prefixes_read_lengths_and_netmasks_and_lone_hosts() {
        for (text, want) in [
            ("10.0.0.1/24", "10.0.0.1/24"),
            ("10.0.0.1/255.255.255.0", "10.0.0.1/24"),
            ("10.0.0.1", "10.0.0.1/32"),
            ("FD00::1/64", "fd00::1/64"),
            ("fd00::1", "fd00::1/128"),
        ] {
            assert_eq!(parse_prefix(text).map(|net| net.to_string()).as_deref(), Some(want), "{text}");
        }
        for bad in ["", "10.0.0.1/33", "10.0.0.1/255.0.255.0", "10.0.0/8", "10.0.0.1/", "10.0.0.1/+8", "ether1"] {
            assert_eq!(parse_prefix(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn port_lists_are_sorted_and_merged() {
        for text in ["80,81,443", "443,80-81", "80-81,443,81"] {
            assert_eq!(parse_ranges(text).map(|set| set.to_string()).as_deref(), Some("80-81,443"), "{text}");
        }
        for bad in ["", "80,", "http", "90-80", "80-", "+80", "99999999999"] {
            assert_eq!(parse_ranges(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn integers_are_decimal_or_marked_hexadecimal() {
        assert_eq!(parse_int("0x1F"), Some(31));
        assert_eq!(parse_int("010"), Some(10));
        assert_eq!(parse_int("-9223372036854775808"), Some(i64::MIN));
        for bad in ["", "-", "0x", "+5", "5.0", "9223372036854775808", "--5"] {
            assert_eq!(parse_int(bad), None, "{bad:?}");
        }
    }
}
