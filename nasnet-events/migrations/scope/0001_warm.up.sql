-- The warm tier of one scope, in system.db or router-{id}.db. Keys named pos are epoch << 40 | seq.

-- Streams, event types, actors and boots as small integers.
CREATE TABLE event_names (
    id   INTEGER PRIMARY KEY,
    text TEXT NOT NULL UNIQUE
) STRICT;

-- Events committed together with the state they describe, one row each.
CREATE TABLE event_rows (
    pos            INTEGER PRIMARY KEY CHECK (pos > 0),
    stream         INTEGER NOT NULL REFERENCES event_names (id),
    version        INTEGER NOT NULL CHECK (version > 0),
    kind           INTEGER NOT NULL REFERENCES event_names (id),
    -- Class, level and clock quality as in a block.
    flags          INTEGER NOT NULL,
    schema         INTEGER NOT NULL,
    event_id       BLOB NOT NULL CHECK (length(event_id) = 16),
    actor          INTEGER REFERENCES event_names (id),
    correlation_id BLOB CHECK (correlation_id IS NULL OR length(correlation_id) = 16),
    causation_id   BLOB CHECK (causation_id IS NULL OR length(causation_id) = 16),
    -- Whom a sealed body is about.
    subject        INTEGER REFERENCES event_names (id),
    wall_ms        INTEGER NOT NULL,
    boot           INTEGER NOT NULL REFERENCES event_names (id),
    boottime_ms    INTEGER NOT NULL,
    body           TEXT NOT NULL,
    -- SHA-256 chain over the rows of this scope in the order of their positions, after this one.
    digest         BLOB NOT NULL CHECK (length(digest) = 32),
    -- CRC32C over the event with its names spelled out, and the digest.
    crc            INTEGER NOT NULL,
    UNIQUE (stream, version)
) STRICT;

-- Normal events in one block per flush.
CREATE TABLE event_segments (
    first_pos    INTEGER PRIMARY KEY CHECK (first_pos > 0),
    last_pos     INTEGER NOT NULL CHECK (last_pos >= first_pos),
    -- Every Normal event of this scope up to here is on flash; of all scopes up to complete_pos.
    through_pos  INTEGER NOT NULL CHECK (through_pos >= last_pos),
    complete_pos INTEGER NOT NULL CHECK (complete_pos >= 0),
    events       INTEGER NOT NULL CHECK (events > 0),
    wall_min_ms  INTEGER NOT NULL,
    wall_max_ms  INTEGER NOT NULL,
    -- Names of the event types, and of the streams with the highest version of each.
    kinds        BLOB NOT NULL,
    streams      BLOB NOT NULL,
    raw_bytes    INTEGER NOT NULL,
    -- SHA-256 chain over the events in the segments of this scope, before and after this one.
    prev_digest  BLOB NOT NULL CHECK (length(prev_digest) = 32),
    digest       BLOB NOT NULL CHECK (length(digest) = 32),
    -- CRC32C over all other columns.
    crc          INTEGER NOT NULL,
    -- Last, so that the columns above are read without its pages.
    body         BLOB NOT NULL
) STRICT;

CREATE TABLE event_cursors (
    name TEXT PRIMARY KEY,
    pos  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Where the two chains stand behind the last row and the last segment that were removed, so that they go on and what is
-- left can still be checked.
CREATE TABLE event_chain (
    lane   TEXT PRIMARY KEY CHECK (lane IN ('rows', 'segments')),
    pos    INTEGER NOT NULL CHECK (pos > 0),
    digest BLOB NOT NULL CHECK (length(digest) = 32)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER event_rows_leave_their_digest AFTER DELETE ON event_rows
BEGIN
    INSERT INTO event_chain (lane, pos, digest) VALUES ('rows', OLD.pos, OLD.digest)
        ON CONFLICT (lane) DO UPDATE SET pos = excluded.pos, digest = excluded.digest WHERE excluded.pos > pos;
END;

CREATE TRIGGER event_segments_leave_their_digest AFTER DELETE ON event_segments
BEGIN
    INSERT INTO event_chain (lane, pos, digest) VALUES ('segments', OLD.last_pos, OLD.digest)
        ON CONFLICT (lane) DO UPDATE SET pos = excluded.pos, digest = excluded.digest WHERE excluded.pos > pos;
END;

CREATE TRIGGER event_rows_are_immutable BEFORE UPDATE ON event_rows
BEGIN
    SELECT RAISE(ABORT, 'event rows are append-only');
END;

CREATE TRIGGER event_segments_are_immutable BEFORE UPDATE ON event_segments
BEGIN
    SELECT RAISE(ABORT, 'event segments are append-only');
END;
