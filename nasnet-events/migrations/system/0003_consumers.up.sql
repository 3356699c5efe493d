-- Named consumers: how far each is known to have come, and what it keeps from being pruned. Keys named pos are
-- epoch << 40 | seq. Written when a consumer is made and when a checkpoint is due, never for each event.
CREATE TABLE event_consumers (
    name              TEXT PRIMARY KEY,
    -- One made anew under the name of a forgotten one has another.
    uid               BLOB NOT NULL CHECK (length(uid) = 16),
    -- What it wants, as JSON.
    filter            TEXT NOT NULL,
    -- Everything up to here is handled. Behind runtime.db, which dies with the boot.
    pos               INTEGER NOT NULL CHECK (pos >= 0),
    -- Removals that reach up to here were told.
    told              INTEGER NOT NULL CHECK (told >= 0),
    -- What it may hold back from retention; NULL = nothing.
    guard_max_age_ms  INTEGER CHECK (guard_max_age_ms >= 0),
    guard_bytes_max   INTEGER CHECK (guard_bytes_max >= 0),
    -- When pos moved last.
    moved_boot        BLOB NOT NULL CHECK (length(moved_boot) = 16),
    moved_boottime_ms INTEGER NOT NULL,
    moved_wall_ms     INTEGER NOT NULL,
    CHECK ((guard_max_age_ms IS NULL) = (guard_bytes_max IS NULL))
) STRICT, WITHOUT ROWID;

-- Streams a forwarder cannot get rid of now: nothing of them is sent past the event at pos.
CREATE TABLE event_blocked (
    consumer     TEXT NOT NULL REFERENCES event_consumers (name) ON DELETE CASCADE,
    scope        TEXT NOT NULL,
    stream       TEXT NOT NULL,
    -- The event that failed; those of the stream behind it wait.
    pos          INTEGER NOT NULL CHECK (pos > 0),
    tries        INTEGER NOT NULL CHECK (tries > 0),
    -- The next try is due delay_ms after this instant, or after the start of a later boot.
    boot         BLOB NOT NULL CHECK (length(boot) = 16),
    boottime_ms  INTEGER NOT NULL,
    delay_ms     INTEGER NOT NULL CHECK (delay_ms >= 0),
    why          TEXT NOT NULL,
    PRIMARY KEY (consumer, scope, stream)
) STRICT, WITHOUT ROWID;

-- Events a forwarder gave up, kept by value: retention of the stream does not reach them.
CREATE TABLE event_dead_letters (
    consumer TEXT NOT NULL REFERENCES event_consumers (name) ON DELETE CASCADE,
    pos      INTEGER NOT NULL CHECK (pos > 0),
    tries    INTEGER NOT NULL CHECK (tries > 0),
    why      TEXT NOT NULL,
    wall_ms  INTEGER NOT NULL,
    -- Somebody asked for one more try.
    retry    INTEGER NOT NULL DEFAULT 0 CHECK (retry IN (0, 1)),
    -- The event as a line of the cold tier: sealed, if it is about somebody.
    event    TEXT NOT NULL,
    PRIMARY KEY (consumer, pos)
) STRICT, WITHOUT ROWID;

-- Parts of scopes a consumer was not shown because their database could not be read: it went on with the others.
CREATE TABLE event_left_out (
    consumer    TEXT NOT NULL REFERENCES event_consumers (name) ON DELETE CASCADE,
    scope       TEXT NOT NULL,
    -- What is up to here was shown.
    after_pos   INTEGER NOT NULL CHECK (after_pos >= 0),
    -- What is behind here was shown, or is still to be.
    through_pos INTEGER NOT NULL CHECK (through_pos > after_pos),
    why         TEXT NOT NULL,
    -- Since when retention is held back for it.
    boot        BLOB NOT NULL CHECK (length(boot) = 16),
    boottime_ms INTEGER NOT NULL,
    PRIMARY KEY (consumer, scope)
) STRICT, WITHOUT ROWID;
