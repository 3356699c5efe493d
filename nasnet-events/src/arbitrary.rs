//! Random events for the properties of this crate.

use nasnet_dbmanager::{BootId, ClockQuality, Scope};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use ulid::Ulid;

use crate::body::Body;
use crate::class::Class;
use crate::event::{Level, Recorded};
use crate::name::{EventType, StreamName, Subject};
use crate::position::Position;

prop_compose! {
    fn event()(
        id: [u8; 16],
        scope in prop_oneof![Just("system"), Just("r1"), Just("edge-2")],
        stream in "[a-z]{1,8}/[A-Z0-9]{1,4}",
        version: u64,
        kind in "[a-z]{1,6}\\.[a-z]{1,6}",
        class in prop_oneof![Just(Class::Low), Just(Class::Normal), Just(Class::Critical)],
        level in prop_oneof![Just(Level::Debug), Just(Level::Info), Just(Level::Warning), Just(Level::Error)],
        (schema, wall_ms, boottime_ms) in any::<(u16, i64, u64)>(),
        unsynced: bool,
        boot in prop_oneof![Just([1; 16]), Just([2; 16])],
        actor in option::of("[ -~]{0,12}"),
        correlation in option::of(any::<[u8; 16]>()),
        causation in option::of(any::<[u8; 16]>()),
        subject in option::of("[a-z]{1,6}"),
        (sealed, synced) in any::<(bool, bool)>(),
        body in vec(".{0,20}", 0..4),
    ) -> Recorded {
        Recorded {
            position: Position::START,
            id: Ulid::from_bytes(id),
            scope: scope.parse::<Scope>().unwrap(),
            stream: StreamName::parse(&stream).unwrap(),
            version,
            kind: EventType::parse(&kind).unwrap(),
            class,
            level,
            schema,
            actor,
            correlation_id: correlation.map(Ulid::from_bytes),
            causation_id: causation.map(Ulid::from_bytes),
            wall_ms,
            quality: if unsynced { ClockQuality::Unsynced } else { ClockQuality::Synced },
            boot: BootId::from_bytes(boot),
            boottime_ms,
            subject: subject.map(|subject| Subject::parse(&subject).unwrap()),
            synced,
            body: Body::from_stored(serde_json::to_string(&body).unwrap(), sealed).unwrap(),
        }
    }
}

/// Events at ascending positions, as they stand in a block.
pub(crate) fn events(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Recorded>> {
    vec((event(), 1..40_u64), count).prop_map(|drawn| {
        let mut seq = 0;
        drawn
            .into_iter()
            .map(|(mut event, step)| {
                seq += step;
                event.position = Position::new(7, seq);
                event
            })
            .collect()
    })
}
