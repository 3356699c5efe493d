//! Numbers that only grow: event epochs, blocks of fencing tokens.
//!
//! A number given out is on flash before the caller has it, so it is never given out twice, whatever is killed or cut.
//! The table's own triggers refuse every change that would lower a counter.

use sqlx::SqliteConnection;

use super::{column, name};
use crate::error::Error;

const GET: &str = "SELECT value FROM counters WHERE name = ?1";

const RESERVE: &str = "
    INSERT INTO counters (name, value)
    VALUES (?1, COALESCE((SELECT value FROM counters WHERE name = ?1), 0) + ?2)
    ON CONFLICT (name) DO UPDATE SET value = excluded.value
    RETURNING value";

const RAISE: &str = "
    INSERT INTO counters (name, value)
    VALUES (?1, MAX(COALESCE((SELECT value FROM counters WHERE name = ?1), 0), ?2))
    ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE excluded.value > counters.value";

/// For the test of the query plans.
#[cfg(test)]
pub(super) const STATEMENTS: &[(&str, &str)] =
    &[("counters::GET", GET), ("counters::RESERVE", RESERVE), ("counters::RAISE", RAISE)];

/// Returns the largest number given out so far, 0 when there was none.
///
/// # Errors
/// [`Error::InvalidName`], or an error of the database.
pub async fn get(conn: &mut SqliteConnection, name: &str) -> Result<u64, Error> {
    name::check("counter", name)?;
    let value: Option<i64> = sqlx::query_scalar(GET).bind(name).fetch_optional(conn).await?;
    column::unsigned("counter", value.unwrap_or(0))
}

/// Reserves the next `count` numbers and returns the first of them; the first number of a counter is 1.
///
/// # Errors
/// [`Error::CounterExhausted`] when the numbers would pass `i64::MAX`, [`Error::InvalidName`], or an error of the
/// database.
pub async fn reserve(conn: &mut SqliteConnection, name: &str, count: u64) -> Result<u64, Error> {
    name::check("counter", name)?;
    let stored = i64::try_from(count).map_err(|_| exhausted(name))?;
    let last: i64 =
        sqlx::query_scalar(RESERVE).bind(name).bind(stored).fetch_one(conn).await.map_err(
            |error| match Error::from(error) {
                // An integer that overflows becomes a float, which the STRICT table refuses.
                Error::Constraint { .. } => exhausted(name),
                other => other,
            },
        )?;
    Ok(column::unsigned("counter", last)?.saturating_sub(count) + 1)
}

/// Makes sure that every number reserved from now on is greater than `at_least`; never lowers the counter.
///
/// # Errors
/// [`Error::CounterExhausted`] when `at_least` passes `i64::MAX`, [`Error::InvalidName`], or an error of the database.
pub async fn raise(conn: &mut SqliteConnection, name: &str, at_least: u64) -> Result<(), Error> {
    name::check("counter", name)?;
    let at_least = i64::try_from(at_least).map_err(|_| exhausted(name))?;
    sqlx::query(RAISE).bind(name).bind(at_least).execute(conn).await?;
    Ok(())
}

fn exhausted(name: &str) -> Error {
    Error::CounterExhausted { name: name.to_owned() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::system::scratch::{Scratch, connect};

    #[derive(Debug, Clone)]
    enum Step {
        Reserve(u64),
        Raise(u64),
        RollBack(u64),
        Reopen,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0_u64..2000).prop_map(Step::Reserve),
            3 => (0_u64..5000).prop_map(Step::Raise),
            1 => (1_u64..2000).prop_map(Step::RollBack),
            1 => Just(Step::Reopen),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

        #[test]
        fn no_number_is_given_out_twice_and_none_is_lower_than_before(steps in prop::collection::vec(step(), 1..30)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(async {
                let mut scratch = Scratch::new().await;
                let mut high_water = 0;
                for step in steps {
                    match step {
                        Step::Reserve(count) => {
                            let first = reserve(&mut scratch.conn, "token", count).await.expect("reserve");
                            assert_eq!(first, high_water + 1);
                            high_water += count;
                        }
                        Step::Raise(at_least) => {
                            raise(&mut scratch.conn, "token", at_least).await.expect("raise");
                            high_water = high_water.max(at_least);
                        }
                        Step::RollBack(count) => {
                            sqlx::query("SAVEPOINT s").execute(&mut scratch.conn).await.expect("savepoint");
                            reserve(&mut scratch.conn, "token", count).await.expect("reserve");
                            sqlx::query("ROLLBACK TO s").execute(&mut scratch.conn).await.expect("rollback");
                            sqlx::query("RELEASE s").execute(&mut scratch.conn).await.expect("release");
                        }
                        Step::Reopen => scratch.conn = connect(scratch.path()).await,
                    }
                    assert_eq!(get(&mut scratch.conn, "token").await.expect("get"), high_water);
                    assert_eq!(get(&mut scratch.conn, "other").await.expect("get"), 0, "counters do not mix");
                }
            });
        }
    }

    #[tokio::test]
    async fn no_statement_lowers_or_removes_a_counter() {
        let mut scratch = Scratch::new().await;
        reserve(&mut scratch.conn, "token", 10).await.expect("reserve");
        for sql in [
            "UPDATE counters SET value = 9",
            "UPDATE counters SET name = 'gone'",
            "DELETE FROM counters",
            "INSERT OR REPLACE INTO counters (name, value) VALUES ('token', 3)",
            "INSERT INTO counters (name, value) VALUES ('token', 3) ON CONFLICT DO UPDATE SET value = 3",
        ] {
            assert!(scratch.refusal(sql).await.contains("a counter never goes"), "{sql}");
        }
        assert_eq!(get(&mut scratch.conn, "token").await.expect("get"), 10);
    }

    #[tokio::test]
    async fn a_counter_ends_with_an_error_not_with_a_lower_number() {
        let mut scratch = Scratch::new().await;
        raise(&mut scratch.conn, "token", i64::MAX as u64 - 5).await.expect("raise");
        let error = reserve(&mut scratch.conn, "token", 6).await.expect_err("too many");
        assert!(matches!(error, Error::CounterExhausted { .. }), "{error:?}");
        reserve(&mut scratch.conn, "token", 5).await.expect("the last ones");
        assert!(reserve(&mut scratch.conn, "token", u64::MAX).await.is_err());
        assert!(raise(&mut scratch.conn, "token", u64::MAX).await.is_err());
        assert!(matches!(get(&mut scratch.conn, "Bad name").await, Err(Error::InvalidName { .. })));
    }

    #[tokio::test]
    async fn raising_to_what_is_already_there_writes_nothing() {
        let mut scratch = Scratch::new().await;
        reserve(&mut scratch.conn, "token", 1024).await.expect("reserve");
        let before = crate::vfs::written(&scratch.path());
        raise(&mut scratch.conn, "token", 1024).await.expect("raise");
        raise(&mut scratch.conn, "token", 7).await.expect("raise");
        assert_eq!((crate::vfs::written(&scratch.path()) - before).bytes, 0);
    }
}
