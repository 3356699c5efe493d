//! One dictionary for all types of a scope, or one for each set of them: what ADR 0004 decided by. Six types whose bodies have
//! nothing in common but their values, which is the best case for dictionaries of their own.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::cast_precision_loss, missing_docs)]

use std::collections::BTreeMap;

const LEVEL: i32 = 3;
/// Flash a segment costs besides its body: its row, the lists of streams and types, two digests.
const SEGMENT_ROW: usize = 220;

/// The type of an event, and its stream, type and body.
fn event(number: u64) -> (usize, Vec<u8>) {
    let mut state = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut next = |bound: u64| {
        state = (state ^ (state >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (state >> 33) % bound
    };
    let kind = usize::try_from(next(6)).unwrap();
    let (a, b, c, minute) = (next(256), next(256), next(1_000_000_000), next(1_440));
    let (name, body) = match kind {
        0 => (
            "interface.status_changed",
            format!(
                r#"{{"menu":"/interface/ethernet","row":"*{a:X}","before":{{"running":"true","mtu":"1500"}},"after":{{"running":"false","mtu":"1500","last-link-down-time":"2026-11-{:02} 10:{:02}:07"}}}}"#,
                a % 28 + 1,
                b % 60
            ),
        ),
        1 => (
            "dhcp.lease_assigned",
            format!(
                r#"{{"server":"lan","address":"192.168.{}.{b}","mac-address":"48:8F:5A:{a:02X}:{b:02X}:{:02X}","host-name":"phone-{a}","expires-after":"{}m","status":"bound"}}"#,
                a % 4,
                c % 256,
                minute % 60
            ),
        ),
        2 => (
            "firewall.counter_observed",
            format!(
                r#"{{"chain":"forward","action":"drop","in-interface-list":"WAN","bytes":{c},"packets":{},"comment":"drop everything from outside {}"}}"#,
                c / 700,
                a % 12
            ),
        ),
        3 => (
            "route.changed",
            format!(
                r#"{{"dst-address":"10.{a}.{b}.0/24","gateway":"172.16.{}.1","distance":{},"active":true,"routing-table":"main","scope":30,"target-scope":10}}"#,
                a % 8,
                b % 3 + 1
            ),
        ),
        4 => (
            "wireguard.handshake_observed",
            format!(
                r#"{{"peer":"usa-vpn-{}","interface":"wg0","last-handshake":"{}s","rx":{c},"tx":{},"endpoint":"203.0.{a}.{b}:13231","persistent-keepalive":"25s"}}"#,
                a % 20,
                minute % 180,
                c / 3
            ),
        ),
        _ => (
            "auth.session.started",
            format!(
                r#"{{"user":"admin-{}","via":"web","from":"192.168.88.{b}","session":"{:032x}","method":"password","remember":{}}}"#,
                a % 5,
                u128::from(c) * 0x9E37_79B9_7F4A_7C15,
                a % 2 == 0
            ),
        ),
    };
    (kind, format!("resource/{a:026}{name}{body}").into_bytes())
}

fn train(samples: &[&[u8]], bytes: usize) -> Vec<u8> {
    zstd::dict::from_samples(samples, bytes).unwrap()
}

fn packed(events: &[&[u8]], dictionary: Option<&[u8]>) -> usize {
    let mut compressor = match dictionary {
        Some(dictionary) => zstd::bulk::Compressor::with_dictionary(LEVEL, dictionary).unwrap(),
        None => zstd::bulk::Compressor::new(LEVEL).unwrap(),
    };
    compressor.compress(&events.concat()).unwrap().len()
}

#[test]
fn a_segment_of_each_set_of_types_with_a_dictionary_of_its_own_is_larger_than_one_of_all() {
    let all: Vec<(usize, Vec<u8>)> = (0..7_168).map(event).collect();
    let (learned, judged) = all.split_at(1_024);
    let bodies = |events: &'_ [(usize, Vec<u8>)], kind: Option<usize>| -> Vec<Vec<u8>> {
        events.iter().filter(|(of, _)| kind.is_none_or(|kind| kind == *of)).map(|(_, body)| body.clone()).collect()
    };
    let trained = |kind: Option<usize>, bytes: usize| {
        let samples = bodies(learned, kind);
        train(&samples.iter().map(Vec::as_slice).collect::<Vec<_>>(), bytes)
    };
    let (one, large) = (trained(None, 8 << 10), trained(None, 48 << 10));
    let own: Vec<Vec<u8>> = (0..6).map(|kind| trained(Some(kind), 8 << 10)).collect();
    println!(
        "dictionaries: one {} bytes, of each type {} together",
        one.len(),
        own.iter().map(Vec::len).sum::<usize>()
    );

    for size in [60, 250, 1_000] {
        let mut sums: BTreeMap<&str, usize> = BTreeMap::new();
        let mut count = 0;
        for flush in judged.chunks_exact(size) {
            count += flush.len();
            let whole: Vec<&[u8]> = flush.iter().map(|(_, body)| body.as_slice()).collect();
            for (name, dictionary) in [("none", None), ("one of 8 KiB", Some(&one)), ("one of 48 KiB", Some(&large))] {
                *sums.entry(name).or_default() += SEGMENT_ROW + packed(&whole, dictionary.map(Vec::as_slice));
            }
            for (kind, dictionary) in own.iter().enumerate() {
                let part = bodies(flush, Some(kind));
                let part: Vec<&[u8]> = part.iter().map(Vec::as_slice).collect();
                *sums.entry("segments of each type").or_default() += SEGMENT_ROW + packed(&part, Some(dictionary));
                // What a type of its own would gain where nothing else is flushed with it.
                *sums.entry("alone, the common dictionary").or_default() += packed(&part, Some(&one));
                *sums.entry("alone, its own").or_default() += packed(&part, Some(dictionary));
            }
        }
        for (name, bytes) in &sums {
            println!("flushes of {size:4}: {name:30} {:6.1} bytes an event", *bytes as f64 / count as f64);
        }
        // Flushes are about a page, some 60 events; a large one is what was held up for long.
        let is_usual = size < 1_000;
        assert!(!is_usual || sums["one of 8 KiB"] < sums["segments of each type"], "decide ADR 0004 anew");
        // What its own dictionary gains at best does not pay for five more of them.
        assert!(sums["alone, the common dictionary"] * 9 < sums["alone, its own"] * 10, "decide ADR 0004 anew");
    }
}
