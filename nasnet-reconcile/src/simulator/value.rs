//! The types of arguments: which spellings are accepted and how the router prints them back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::names::Target;
use crate::routeros::rest::duration;

/// The type of an argument.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Type {
    /// Any text.
    Text,
    /// `yes`, `no`, `true` or `false`.
    Bool,
    /// There or not there; it reads back without a value (S28c).
    Flag,
    /// A number in a range.
    Int { min: u64, max: u64 },
    /// A number in a range, or one of these words.
    IntOr { min: u64, max: u64, words: &'static [&'static str] },
    /// A number of 16 bits, printed in hexadecimal (S28f).
    Hex16,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// A duration such as `1d2h`, or one of `none`, `never`, `auto`, `infinity`.
    Duration,
    /// A MAC address.
    Mac,
    /// An IPv4 address with its prefix length, `/32` when none is given; the host part is kept (S28a).
    HostAddress,
    /// A network; the host part is cleared (S28b).
    Prefix,
    /// Networks separated by commas.
    PrefixList,
    /// An address of either family.
    Ip,
    /// Addresses separated by commas.
    IpList,
    /// A WireGuard key.
    Key,
    /// VLAN ids and ranges separated by commas.
    VlanIds,
    /// The name of a row of another menu.
    Name(Target, &'static [&'static str]),
    /// Names of rows of another menu, separated by commas.
    NameList(Target),
    /// The name of a row of another menu, after an optional `!`.
    NegatableName(Target, &'static [&'static str]),
    /// Addresses or interfaces, separated by commas.
    Gateway,
}

/// Returns the value as the router prints it back; `None` when it does not have the type's form.
pub(crate) fn canonical(kind: Type, value: &str) -> Option<String> {
    match kind {
        Type::Text | Type::Gateway => Some(value.to_owned()),
        Type::Bool => boolean(value).map(|b| b.to_string()),
        Type::Flag => Some(String::new()),
        Type::Int { min, max } => integer(value, min, max),
        Type::IntOr { min, max, words } => word(value, words).or_else(|| integer(value, min, max)),
        Type::Hex16 => integer(value, 0, 0xFFFF)?.parse::<u32>().ok().map(|number| format!("0x{number:X}")),
        Type::OneOf(words) => word(value, words),
        Type::Duration => word(value, &["none", "never", "auto", "infinity"]).or_else(|| {
            let ms = duration::parse_ms(value)?;
            Some(duration_text(ms))
        }),
        Type::Mac => mac(value),
        Type::HostAddress => prefix(value).map(|(address, length)| format!("{address}/{length}")),
        Type::Prefix => network(value),
        Type::PrefixList => each(value, network),
        Type::Ip => value.parse::<IpAddr>().ok().map(|address| address.to_string()),
        Type::IpList => each(value, |part| part.parse::<IpAddr>().ok().map(|address| address.to_string())),
        Type::Key => key_bytes(value).map(|_| value.to_owned()),
        Type::VlanIds => each(value, vlan_range),
        Type::Name(..) | Type::NegatableName(..) => (!value.is_empty()).then(|| value.to_owned()),
        Type::NameList(_) => each(value, |part| (!part.is_empty()).then(|| part.to_owned())),
    }
}

fn each(value: &str, one: impl Fn(&str) -> Option<String>) -> Option<String> {
    if value.is_empty() {
        return Some(String::new());
    }
    let parts: Option<Vec<String>> = value.split(',').map(|part| one(part.trim())).collect();
    parts.map(|parts| parts.join(","))
}

fn word(value: &str, words: &[&str]) -> Option<String> {
    words.contains(&value).then(|| value.to_owned())
}

/// Reads a truth value in either spelling.
pub(crate) fn boolean(value: &str) -> Option<bool> {
    match value {
        "yes" | "true" => Some(true),
        "no" | "false" => Some(false),
        _ => None,
    }
}

fn integer(value: &str, min: u64, max: u64) -> Option<String> {
    let number = match value.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok()?,
        None => value.parse::<u64>().ok()?,
    };
    (min..=max).contains(&number).then(|| number.to_string())
}

/// Prints a duration as the router does.
pub(crate) fn duration_text(total_ms: u64) -> String {
    let mut out = String::new();
    let mut rest = total_ms;
    for (unit, unit_ms) in
        [("w", 604_800_000), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)]
    {
        if rest >= unit_ms {
            out.push_str(&format!("{}{unit}", rest / unit_ms));
            rest %= unit_ms;
        }
    }
    if out.is_empty() { "0s".to_owned() } else { out }
}

fn mac(value: &str) -> Option<String> {
    let digits: String = value.chars().filter(|c| !matches!(c, ':' | '-' | '.')).collect();
    if digits.len() != 12 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let pairs: Vec<String> = (0..6).map(|i| digits[i * 2..i * 2 + 2].to_ascii_uppercase()).collect();
    Some(pairs.join(":"))
}

/// Reads `address`, `address/length` or `address/netmask`.
pub(crate) fn prefix(value: &str) -> Option<(Ipv4Addr, u32)> {
    let (address, length) = match value.split_once('/') {
        None => (value, 32),
        Some((address, mask)) => (address, mask_length(mask)?),
    };
    Some((address.parse().ok()?, length))
}

/// Reads a prefix length or a netmask.
pub(crate) fn mask_length(mask: &str) -> Option<u32> {
    if let Ok(mask) = mask.parse::<Ipv4Addr>() {
        let bits = u32::from(mask);
        return (bits.leading_ones() == bits.count_ones()).then(|| bits.count_ones());
    }
    mask.parse::<u32>().ok().filter(|length| *length <= 32)
}

/// Returns the network address of an address.
pub(crate) fn network_of(address: Ipv4Addr, length: u32) -> Ipv4Addr {
    let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
    Ipv4Addr::from(u32::from(address) & mask)
}

fn network(value: &str) -> Option<String> {
    if let Some((address, length)) = prefix(value) {
        return Some(format!("{}/{length}", network_of(address, length)));
    }
    let (address, length) = value.split_once('/').unwrap_or((value, "128"));
    let (address, length) = (address.parse::<Ipv6Addr>().ok()?, length.parse::<u32>().ok().filter(|l| *l <= 128)?);
    let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
    Some(format!("{}/{length}", Ipv6Addr::from(u128::from(address) & mask)))
}

fn vlan_range(part: &str) -> Option<String> {
    let id = |text: &str| text.parse::<u16>().ok().filter(|id| (1..=4094).contains(id));
    match part.split_once('-') {
        None => id(part).map(|id| id.to_string()),
        Some((first, last)) => {
            let (first, last) = (id(first)?, id(last)?);
            (first <= last).then(|| format!("{first}-{last}"))
        }
    }
}

/// Decodes a WireGuard key.
pub(crate) fn key_bytes(value: &str) -> Option<[u8; 32]> {
    STANDARD.decode(value).ok()?.try_into().ok()
}

/// Returns the public key of a WireGuard private key.
pub(crate) fn public_key(private: [u8; 32]) -> String {
    let secret = x25519_dalek::StaticSecret::from(private);
    STANDARD.encode(x25519_dalek::PublicKey::from(&secret).as_bytes())
}

/// Encodes a WireGuard key.
pub(crate) fn key_text(bytes: [u8; 32]) -> String {
    STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_printed_back_in_the_routers_spelling() {
        let cases = [
            (Type::Bool, "yes", Some("true")),
            (Type::Bool, "maybe", None),
            (Type::Int { min: 1, max: 4094 }, "0x10", Some("16")),
            (Type::Int { min: 1, max: 4094 }, "4095", None),
            (Type::Hex16, "16384", Some("0x4000")),
            (Type::Hex16, "0x10000", None),
            (Type::Duration, "00:10:00", Some("10m")),
            (Type::Duration, "90", Some("1m30s")),
            (Type::Duration, "soon", None),
            (Type::Mac, "aa-bb-cc-dd-ee-ff", Some("AA:BB:CC:DD:EE:FF")),
            (Type::Mac, "aa:bb", None),
            (Type::HostAddress, "192.168.88.1", Some("192.168.88.1/32")),
            (Type::HostAddress, "192.168.88.1/255.255.255.0", Some("192.168.88.1/24")),
            (Type::HostAddress, "192.168.88.1/33", None),
            (Type::HostAddress, "300.1.1.1/24", None),
            (Type::Prefix, "10.0.0.77/24", Some("10.0.0.0/24")),
            (Type::Prefix, "0.0.0.0/0", Some("0.0.0.0/0")),
            (Type::PrefixList, "10.0.0.1,fd00::1/64", Some("10.0.0.1/32,fd00::/64")),
            (Type::VlanIds, "10,20-30", Some("10,20-30")),
            (Type::VlanIds, "30-20", None),
            (Type::Key, "short", None),
        ];
        for (kind, given, printed) in cases {
            assert_eq!(canonical(kind, given).as_deref(), printed, "{kind:?} {given}");
        }
    }

    #[test]
    fn the_public_key_is_the_one_of_rfc_7748() {
        let private: [u8; 32] = [
            0x77, 0x07, 0x6d, 0x0a, 0x73, 0x18, 0xa5, 0x7d, 0x3c, 0x16, 0xc1, 0x72, 0x51, 0xb2, 0x66, 0x45, 0xdf, 0x4c,
            0x2f, 0x87, 0xeb, 0xc0, 0x99, 0x2a, 0xb1, 0x77, 0xfb, 0xa5, 0x1d, 0xb9, 0x2c, 0x2a,
        ];
        assert_eq!(public_key(private), "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=");
    }
}
