//! The laws of normaliser, diff, digest and three-way comparison, over generated values and spellings.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use nasnet_state::canonical::{Domain, FieldMask, hash};
use nasnet_state::diff::{Verdict, apply, diff, invert, three_way};
use nasnet_state::{FieldName, FieldSpec, FieldValue, Fields, Mac, RangeSet, Reference, SecretIntake};
use proptest::prelude::*;
use support::{EVERYTHING, TestSeal};

/// A value of a field, and the spellings a device or a person may use for it.
fn spelled(field: &'static str) -> BoxedStrategy<(FieldValue, Vec<String>)> {
    match field {
        "disabled" => any::<bool>()
            .prop_map(|on| {
                (on.into(), if on { vec!["yes".into(), "true".into()] } else { vec!["no".into(), "false".into()] })
            })
            .boxed(),
        "mtu" => (68_i64..=65_535)
            .prop_map(|mtu| (mtu.into(), vec![mtu.to_string(), format!("0x{mtu:x}"), format!("0{mtu}")]))
            .boxed(),
        "keepalive" => (0_u64..200_000_000)
            .prop_map(|ms| {
                let (s, m, h) = (ms / 1000, ms / 60_000, ms / 3_600_000);
                let value = FieldValue::Duration(Duration::from_millis(ms));
                let clock = format!("{h:02}:{:02}:{:02}.{:03}", m % 60, s % 60, ms % 1000);
                let parts = format!("{m}m{}s{}ms", s % 60, ms % 1000);
                let days = format!("{}d{:02}:{:02}:{:02}.{:03}", h / 24, h % 24, m % 60, s % 60, ms % 1000);
                (value, vec![clock, parts, days, format!("{ms}ms"), format!("{s}.{:03}", ms % 1000)])
            })
            .boxed(),
        "max-rate" => (0_u64..1_000_000)
            .prop_map(|k| {
                let mega = format!("{}.{:03}M", k / 1000, k % 1000);
                (FieldValue::Rate(k * 1000), vec![format!("{k}k"), format!("{}", k * 1000), mega, format!("{k}kbps")])
            })
            .boxed(),
        "max-size" => (0_u64..1_000_000)
            .prop_map(|k| {
                (FieldValue::Bytes(k * 1024), vec![format!("{k}KiB"), format!("{k}k"), (k * 1024).to_string()])
            })
            .boxed(),
        "mac-address" => any::<[u8; 6]>()
            .prop_map(|bytes| {
                let colons = bytes.map(|byte| format!("{byte:02x}")).join(":");
                let spellings =
                    vec![colons.clone(), colons.to_uppercase(), colons.replace(':', "-"), colons.replace(':', "")];
                (FieldValue::Mac(Mac(bytes)), spellings)
            })
            .boxed(),
        "gateway" => any::<u32>()
            .prop_map(|bits| (FieldValue::Ip(Ipv4Addr::from(bits).into()), vec![Ipv4Addr::from(bits).to_string()]))
            .boxed(),
        "address" => (any::<u32>(), 0_u8..=32)
            .prop_map(|(bits, length)| {
                let net = ipnet::Ipv4Net::new(Ipv4Addr::from(bits), length).unwrap();
                let mut spellings = vec![net.to_string(), format!("{}/{}", net.addr(), net.netmask())];
                if length == 32 {
                    spellings.push(net.addr().to_string());
                }
                (FieldValue::Prefix(net.into()), spellings)
            })
            .boxed(),
        "src-address" => (any::<u32>(), 0_u8..=32, any::<bool>())
            .prop_map(|(bits, length, negated)| {
                let net = ipnet::Ipv4Net::new(Ipv4Addr::from(bits), length).unwrap();
                let value = FieldValue::Prefix(net.trunc().into());
                let bang = if negated { "!" } else { "" };
                let mut spellings = vec![format!("{bang}{net}"), format!("{bang}{}", net.trunc())];
                if length == 32 {
                    spellings.extend([format!("{bang}{}", net.addr()), format!("{bang}{0}-{0}", net.addr())]);
                }
                (if negated { FieldValue::Not(Box::new(value)) } else { value }, spellings)
            })
            .boxed(),
        "dst-port" => proptest::collection::vec((0_u32..100, 0_u32..5), 1..6)
            .prop_map(|spans| {
                let spans: Vec<(u32, u32)> = spans.into_iter().map(|(first, len)| (first, first + len)).collect();
                let each = |(first, last): &(u32, u32)| format!("{first}-{last}");
                let listed: Vec<String> = spans.iter().map(each).collect();
                let reversed: Vec<String> = spans.iter().rev().map(each).collect();
                let single: Vec<String> =
                    spans.iter().flat_map(|&(first, last)| first..=last).map(|port| port.to_string()).collect();
                (
                    FieldValue::Ranges(RangeSet::new(spans)),
                    vec![listed.join(","), reversed.join(", "), single.join(",")],
                )
            })
            .boxed(),
        "mode" => prop_oneof![Just("access"), Just("trunk")]
            .prop_map(|word| (FieldValue::Enum(word.into()), vec![word.to_owned(), word.to_uppercase()]))
            .boxed(),
        "allowed-address" => proptest::collection::vec((any::<u32>(), 1_u8..=32), 1..5)
            .prop_map(|nets| {
                let nets: Vec<_> =
                    nets.into_iter().map(|(bits, length)| ipnet::Ipv4Net::new(bits.into(), length).unwrap()).collect();
                let members = nets.iter().map(|net| FieldValue::Prefix(net.trunc().into())).collect();
                let listed: Vec<String> = nets.iter().map(ToString::to_string).collect();
                let mut reversed = listed.clone();
                reversed.reverse();
                reversed.extend_from_slice(&listed);
                (FieldValue::Set(members), vec![listed.join(","), reversed.join(", ")])
            })
            .boxed(),
        "flags" => proptest::collection::btree_map(0_usize..3, any::<bool>(), 1..4)
            .prop_map(|flags| {
                let words = ["syn", "ack", "fin"];
                let value = |(&at, &negated): (&usize, &bool)| {
                    let word = FieldValue::Enum(words[at].into());
                    if negated { FieldValue::Not(Box::new(word)) } else { word }
                };
                let text =
                    |(&at, &negated): (&usize, &bool)| format!("{}{}", if negated { "!" } else { "" }, words[at]);
                let forth: Vec<String> = flags.iter().map(text).collect();
                let back: Vec<String> = flags.iter().rev().map(text).collect();
                (FieldValue::Set(flags.iter().map(value).collect()), vec![forth.join(","), back.join(",")])
            })
            .boxed(),
        "order" => proptest::collection::vec("[a-z]{1,4}", 1..4)
            .prop_map(|words| {
                let members = words.iter().map(|word| FieldValue::Str(word.clone())).collect();
                (FieldValue::List(members), vec![words.join(","), words.join(" , ")])
            })
            .boxed(),
        "interface" => "[a-z][a-z0-9-]{0,8}"
            .prop_map(|name| {
                let target = nasnet_state::KindName::from_static("interface");
                (FieldValue::Ref(Reference::new(target, name.clone())), vec![name])
            })
            .boxed(),
        "comment" | "name" => "\\PC{1,12}".prop_map(|text| (text.clone().into(), vec![text])).boxed(),
        other => unreachable!("no generator for {other}"),
    }
}

const FIELDS: [&str; 15] = [
    "disabled",
    "mtu",
    "keepalive",
    "max-rate",
    "max-size",
    "mac-address",
    "gateway",
    "address",
    "src-address",
    "dst-port",
    "mode",
    "allowed-address",
    "flags",
    "order",
    "interface",
];

fn spec(field: &str) -> &'static FieldSpec {
    EVERYTHING.field(field).unwrap()
}

fn any_field() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(FIELDS.as_slice())
}

fn any_spelled() -> impl Strategy<Value = (&'static str, FieldValue, Vec<String>)> {
    any_field().prop_flat_map(|field| spelled(field).prop_map(move |(value, spellings)| (field, value, spellings)))
}

/// Few values per field, so that two sets often agree.
fn any_fields() -> impl Strategy<Value = Fields> {
    let few = |field: &'static str, values: &'static [&'static str]| {
        proptest::option::of(proptest::sample::select(values))
            .prop_map(move |text| text.map(|text| (FieldName::from(field), spec(field).parse(text).unwrap())))
    };
    (
        few("disabled", &["yes", "no"]),
        few("mtu", &["1500", "1420", "auto"]),
        few("keepalive", &["10s", "25s", "never"]),
        few("allowed-address", &["10.0.0.0/8", "10.0.0.0/8,10.1.0.0/16", "10.1.0.0/16,10.2.0.0/16"]),
        few("dst-port", &["80", "!80", "80-90"]),
        few("order", &["a,b", "b,a"]),
        few("comment", &["a", "1500", "yes"]),
    )
        .prop_map(|(a, b, c, d, e, f, g)| [a, b, c, d, e, f, g].into_iter().flatten().collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_spelling_of_a_value_reads_as_that_value((field, value, spellings) in any_spelled()) {
        for spelling in spellings {
            prop_assert_eq!(spec(field).parse(&spelling), Some(value.clone()), "{} = {}", field, spelling);
        }
    }

    #[test]
    fn what_is_printed_reads_as_what_was_printed((field, value, _) in any_spelled()) {
        let printed = spec(field).print(&value);
        prop_assert_eq!(spec(field).parse(&printed), Some(value), "{} = {}", field, printed);
    }

    #[test]
    fn any_text_reads_without_loss_and_prints_to_a_fixed_point(field in any_field(), text in "\\PC{0,24}|[0-9a-fkMGsmhdwxi:./,!*-]{1,16}") {
        if let Some(value) = spec(field).parse(&text) {
            if let FieldValue::Opaque(kept) = &value {
                prop_assert_eq!(kept, &text);
            }
            let printed = spec(field).print(&value);
            prop_assert_eq!(spec(field).parse(&printed), Some(value), "{}: {:?} -> {:?}", field, text, printed);
        }
    }

    #[test]
    fn a_row_reads_and_prints_to_a_fixed_point(row in proptest::collection::btree_map("[a-z-]{1,8}|mtu|mac|dst-port|comment", "\\PC{0,12}|[0-9:,-]{1,8}", 0..8)) {
        let intake = SecretIntake::compare(&TestSeal);
        let first = EVERYTHING.parse(&row, &intake).unwrap();
        let printed = EVERYTHING.print(&first.fields);
        let second = EVERYTHING.parse(&printed, &intake).unwrap();
        let shown: Fields = first.fields.iter().filter(|(_, value)| !matches!(value, FieldValue::Secret(_)))
            .map(|(name, value)| (name.clone(), value.clone())).collect();
        prop_assert_eq!(&second.fields, &shown);
        prop_assert_eq!(EVERYTHING.print(&second.fields), printed);
        prop_assert_eq!(EVERYTHING.normalise(&shown), shown);
    }

    #[test]
    fn an_unknown_kind_of_row_is_kept_to_the_byte(row in proptest::collection::btree_map("[a-z][a-z-]{0,8}", "\\PC{1,12}", 0..8)) {
        let opaque = nasnet_state::KindSchema::opaque();
        let parsed = opaque.parse(&row, &SecretIntake::compare(&TestSeal)).unwrap();
        let kept: BTreeMap<String, String> = row.into_iter().filter(|(name, _)| !nasnet_state::is_sensitive_name(name)).collect();
        prop_assert_eq!(opaque.print(&parsed.fields), kept);
    }

    #[test]
    fn json_reads_back_as_the_value_it_was_written_from((_, value, _) in any_spelled(), text in "\\PC{0,12}") {
        for value in [value, FieldValue::Opaque(text.clone()), FieldValue::Str(text.clone()), FieldValue::Int(i64::MIN)] {
            let json = serde_json::to_string(&value).unwrap();
            prop_assert_eq!(serde_json::from_str::<FieldValue>(&json).unwrap(), value, "{}", json);
        }
    }

    #[test]
    fn a_diff_applied_gives_the_other_side_and_inverted_gives_it_back(a in any_fields(), b in any_fields()) {
        let changes = diff(&a, &b);
        prop_assert_eq!(apply(&a, &changes).unwrap(), b.clone());
        prop_assert_eq!(apply(&b, &invert(&changes)).unwrap(), a.clone());
        prop_assert_eq!(invert(&invert(&changes)), changes.clone());
        let json = serde_json::to_string(&changes).unwrap();
        prop_assert_eq!(serde_json::from_str::<Vec<nasnet_state::diff::FieldChange>>(&json).unwrap(), changes.clone());
        if a != b {
            prop_assert!(apply(&b, &changes).is_err(), "a change applied where it does not start from");
        }
    }

    #[test]
    fn digests_are_equal_exactly_when_the_diff_is_empty(a in any_fields(), b in any_fields()) {
        let kind = EVERYTHING.kind();
        let digest = |fields| hash(Domain::Desired, &kind, 1, &FieldMask::All, fields);
        prop_assert_eq!(digest(&a) == digest(&b), diff(&a, &b).is_empty());
        let both: BTreeSet<FieldName> = a.names().chain(b.names()).cloned().collect();
        let masked = |fields| hash(Domain::Observed, &kind, 1, &FieldMask::Only(both.clone()), fields);
        prop_assert_eq!(masked(&a) == masked(&b), diff(&a, &b).is_empty());
    }

    #[test]
    fn the_three_way_comparison_keeps_its_laws(base in any_fields(), desired in any_fields(), actual in any_fields()) {
        let effective = |fields: &Fields, name: &str| fields.get(name).cloned().or_else(|| spec(name).default_value());
        let states = three_way(&EVERYTHING, Some(&base), &desired, &actual, &BTreeSet::new());
        let wanted: BTreeSet<&FieldName> = base.names().chain(desired.names()).collect();
        prop_assert_eq!(states.iter().map(|state| &state.field).collect::<BTreeSet<_>>(), wanted);
        for state in &states {
            let name = state.field.as_str();
            let (b, d, a) = (effective(&base, name), effective(&desired, name), effective(&actual, name));
            let law = match state.verdict {
                Verdict::InSync => d == a,
                Verdict::PendingChange => a == b && d != a,
                Verdict::DeviceDrift => d == b && d != a,
                Verdict::Conflict => a != b && b != d && d != a,
                Verdict::Unverifiable => false,
            };
            prop_assert!(law, "{:?}", state);
        }
        let never_applied = three_way(&EVERYTHING, None, &desired, &actual, &BTreeSet::new());
        prop_assert!(never_applied.iter().all(|state| matches!(state.verdict, Verdict::InSync | Verdict::PendingChange)));
        let quiet = three_way(&EVERYTHING, Some(&desired), &desired, &desired, &BTreeSet::new());
        prop_assert!(quiet.iter().all(|state| state.verdict == Verdict::InSync));
    }

    #[test]
    fn a_hidden_field_is_unverifiable_unless_something_new_is_wanted(base in any_fields(), desired in any_fields(), actual in any_fields()) {
        let hidden: BTreeSet<FieldName> = base.names().chain(desired.names()).cloned().collect();
        let effective = |fields: &Fields, name: &str| fields.get(name).cloned().or_else(|| spec(name).default_value());
        for state in three_way(&EVERYTHING, Some(&base), &desired, &actual, &hidden) {
            let name = state.field.as_str();
            let moved = effective(&base, name) != effective(&desired, name);
            prop_assert_eq!(state.verdict, if moved { Verdict::PendingChange } else { Verdict::Unverifiable });
            prop_assert_eq!(state.actual, None, "a hidden value was reported");
        }
    }
}

#[test]
fn ipv6_and_ranges_read_as_canonical_values() {
    let read = |field: &str, text: &str| spec(field).parse(text).unwrap();
    assert_eq!(read("address", "FD00:0::1/64"), read("address", "fd00::1/64"));
    assert_eq!(spec("src-address").print(&read("src-address", "2001:db8::1/128")), "2001:db8::1");
    assert_eq!(spec("src-address").print(&read("src-address", "10.0.0.9-10.0.0.20")), "10.0.0.9-10.0.0.20");
    assert!(matches!(read("src-address", "10.0.0.20-10.0.0.9"), FieldValue::Opaque(_)));
    assert_eq!(read("gateway", "10.0.0.1"), FieldValue::Ip(IpAddr::from([10, 0, 0, 1])));
    assert_eq!(read("blackhole", ""), FieldValue::Bool(true));
    assert!(matches!(read("interface", "*1A"), FieldValue::Opaque(_)), "a handle was taken for a name");
}
