//! The record of events stays provable.

use super::*;
use crate::support::with_cold;

#[tokio::test]
async fn the_record_is_sound_after_retention_and_leads_through_every_earlier_head() {
    let site = Site::new();
    // Some segments stay between others that go.
    let retention = Retention::default().types("config.applied", Some(5 * DAY)).types("operation", Some(100 * DAY));
    let mut options = with_cold(&site).retention(retention);
    options.rows_max = 40;
    let (manager, store) = site.open_with(options).await;
    prepare_cold_dir(&manager, &site.cold()).unwrap();
    let mut heads = vec![store.export_head().await.unwrap()];
    for round in 0..5 {
        for _ in 0..8 {
            append_some(&manager, &store).await;
            let auth = event(&manager, "auth.session.revoked");
            store.append(&router("r1"), &stream("s"), Expected::Any, vec![auth]).await.unwrap();
            // Positions of others lie between those of a scope.
            for name in ["alert.raised", "config.applied"] {
                store.append(&router("r2"), &stream("s"), Expected::Any, vec![event(&manager, name)]).await.unwrap();
            }
        }
        let kept = event(&manager, "operation.planned");
        store.append(&router("r1"), &stream("s"), Expected::Any, vec![kept]).await.unwrap();
        heads.push(store.export_head().await.unwrap());
        if round % 2 == 0 {
            store.archive().await.unwrap();
            store.seal().await.unwrap();
        }
        heads.push(store.export_head().await.unwrap());
        let_pass(&site, &store, 6 * DAY).await;
        retain(&store).await;
        heads.push(store.export_head().await.unwrap());
    }
    assert!(store.status().await.unwrap().warm.iter().flatten().any(|warm| warm.sealed.events > 0));
    for head in &heads {
        let verification = store.verify_against(head).await.unwrap();
        assert!(verification.is_sound(), "{:?}", verification.faults);
    }
    store.archive().await.unwrap();
    let_pass(&site, &store, 40 * DAY).await;
    append_some(&manager, &store).await;
    let report = retain(&store).await;
    assert!(report.rows > 0 && report.segments > 0, "{report}");
    store.archive().await.unwrap();
    for head in &heads {
        let verification = store.verify_against(head).await.unwrap();
        assert!(verification.is_sound(), "{:?}", verification.faults);
        // What the warm tier gave up is told as such, and the chain of the archive still leads through the head.
        assert!(!verification.beyond.iter().any(|(_, lane)| *lane == nasnet_events::Lane::Frames));
    }
    assert!(store.verify(Span::all()).await.unwrap().is_sound());
    let bundle = evidence::export(&store, Span::scope(router("r1")), vec![]).await.unwrap();
    let proven = bundle.verify(bundle.head()).unwrap();
    assert_eq!(proven.events, read(&store, Query::scope(router("r1"))).await.len() as u64);
    // A segment cut out above the mark of retention is no retention.
    on_scope(
        &manager,
        &router("r1"),
        "DROP TRIGGER event_segments_are_retained; DROP TRIGGER event_segments_leave_their_digest;
         DELETE FROM event_segments WHERE first_pos = (SELECT first_pos FROM event_segments ORDER BY first_pos DESC LIMIT 1 OFFSET 1)",
    )
    .await;
    assert!(!store.verify(Span::all()).await.unwrap().is_sound());
}

#[tokio::test]
async fn sealed_rows_that_somebody_cut_out_are_missed() {
    let site = Site::new();
    let mut options = EventOptions::default();
    options.rows_max = 8;
    let (manager, store) = site.open_with(options).await;
    for _ in 0..2 {
        for _ in 0..60 {
            let applied = event(&manager, "config.applied");
            store.append(&router("r1"), &stream("s"), Expected::Any, vec![applied]).await.unwrap();
        }
        assert_eq!(store.seal().await.unwrap().segments, 1);
    }
    assert!(store.verify(Span::all()).await.unwrap().is_sound());
    for which in ["MIN", "MAX"] {
        let sql = format!(
            "CREATE TABLE copy AS SELECT * FROM event_sealed;
             DROP TRIGGER IF EXISTS event_sealed_are_retained; DROP TRIGGER IF EXISTS event_sealed_leave_their_digest;
             DELETE FROM event_sealed WHERE first_pos = (SELECT {which}(first_pos) FROM event_sealed)"
        );
        on_scope(&manager, &router("r1"), sql.leak()).await;
        assert!(!store.verify(Span::all()).await.unwrap().is_sound(), "{which}");
        let mend = "DELETE FROM event_sealed; INSERT INTO event_sealed SELECT * FROM copy; DROP TABLE copy";
        on_scope(&manager, &router("r1"), mend).await;
        assert!(store.verify(Span::all()).await.unwrap().is_sound());
    }
}
