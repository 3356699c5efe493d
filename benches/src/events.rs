//! Events as a fleet of routers makes them, the same for the same seed.

use std::fmt::Write as _;

/// Streams in turn: small working sets flatter everybody.
pub const STREAMS: u64 = 2_000;
/// Shortest and longest payload in bytes.
pub const PAYLOAD_BYTES: std::ops::RangeInclusive<usize> = 414..=520;

/// A generator of numbers with a period long enough for every measurement (splitmix64).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Starts at a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns the next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `bound`, which must not be 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        // The lists below are never empty, and far shorter than a usize.
        from[usize::try_from(self.below(from.len() as u64)).unwrap_or(0)]
    }
}

/// One event before it is given to a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Name of its stream.
    pub stream: String,
    /// Dotted type.
    pub kind: &'static str,
    /// JSON of [`PAYLOAD_BYTES`] bytes.
    pub body: String,
}

const KINDS: [&str; 6] = [
    "resource.updated",
    "interface.status_changed",
    "dhcp.lease_assigned",
    "firewall.counter_observed",
    "route.changed",
    "wireguard.handshake_observed",
];
const MENUS: [&str; 6] = [
    "/interface/ethernet",
    "/ip/dhcp-server/lease",
    "/ip/firewall/filter",
    "/interface/wireguard/peers",
    "/ip/route",
    "/interface/bridge/port",
];
const WORDS: [&str; 16] = [
    "uplink", "office", "guest", "camera", "backup", "tunnel", "printer", "roof", "lab", "north", "vlan", "mgmt",
    "voip", "lease", "trunk", "edge",
];

/// Makes events one after another.
#[derive(Debug, Clone)]
pub struct Generator {
    random: Random,
    made: u64,
}

impl Generator {
    /// Starts at a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { random: Random::new(seed), made: 0 }
    }

    /// Makes the next event.
    pub fn sample(&mut self) -> Sample {
        self.made += 1;
        let random = &mut self.random;
        let stream = format!("resource/{:026}", random.below(STREAMS));
        let kind = KINDS[usize::try_from(random.below(KINDS.len() as u64)).unwrap_or(0)];
        let span = (PAYLOAD_BYTES.end() - PAYLOAD_BYTES.start() + 1) as u64;
        let bytes = PAYLOAD_BYTES.start() + usize::try_from(random.below(span)).unwrap_or(0);
        let mut body = format!(
            r#"{{"menu":"{menu}","row":"*{row:X}","uptime":"{weeks}w{days}d{hours:02}:{minutes:02}:00","before":{{"running":"{before}","mtu":"1500","rx-byte":"{rx}","tx-byte":"{tx}","last-link-up-time":"2026-11-{day:02} {hours:02}:{minutes:02}:07"}},"after":{{"running":"true","mtu":"1500","mac-address":"48:8F:5A:{a:02X}:{b:02X}:{c:02X}","address":"10.{a}.{b}.{c}/24"}},"number":{number},"comment":""#,
            menu = random.pick(&MENUS),
            row = random.below(4_096),
            weeks = random.below(30),
            days = random.below(7),
            before = random.pick(&["true", "false"]),
            rx = random.below(1_000_000_000),
            tx = random.below(1_000_000_000),
            day = random.below(28) + 1,
            hours = random.below(24),
            minutes = random.below(60),
            a = random.below(256),
            b = random.below(256),
            c = random.below(256),
            number = self.made,
        );
        // The comment brings the payload to its exact length; two bytes are left for the end.
        while body.len() < bytes - 2 {
            // Writing to a string cannot fail.
            let _ = write!(body, "{} ", random.pick(&WORDS));
        }
        body.truncate(bytes - 2);
        body.push_str("\"}");
        Sample { stream, kind, body }
    }

    /// Makes the next `count` events.
    pub fn samples(&mut self, count: usize) -> Vec<Sample> {
        (0..count).map(|_| self.sample()).collect()
    }
}

#[cfg(test)]
mod tests {
    use nasnet_events::{Class, ClassRules, EventType, Level};

    use super::*;

    #[test]
    fn the_types_are_those_of_normal_events() {
        for kind in KINDS {
            let kind = EventType::parse(kind).unwrap();
            assert_eq!(ClassRules::default().classify(&kind, Level::Info), Class::Normal, "{kind}");
        }
    }

    #[test]
    fn payloads_are_json_of_the_stated_size_and_the_same_for_a_seed() {
        let samples = Generator::new(7).samples(5_000);
        for sample in &samples {
            assert!(PAYLOAD_BYTES.contains(&sample.body.len()), "{}", sample.body.len());
            serde_json::from_str::<serde_json::Value>(&sample.body).unwrap();
        }
        let mean = samples.iter().map(|sample| sample.body.len()).sum::<usize>() / samples.len();
        assert!((455..=480).contains(&mean), "{mean}");
        assert_eq!(Generator::new(7).samples(5_000), samples);
        assert_ne!(Generator::new(8).samples(5_000), samples);
    }
}
