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
    wall_ms        INTEGER NOT NULL,
    boot           INTEGER NOT NULL REFERENCES event_names (id),
    boottime_ms    INTEGER NOT NULL,
    body           TEXT NOT NULL,
    -- CRC32C over the event with its names spelled out.
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
    -- SHA-256 chain over the segments of this scope.
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

-- How far each projection kept in this database has come: moves in the transaction of its model.
CREATE TABLE event_projections (
    consumer TEXT PRIMARY KEY,
    pos      INTEGER NOT NULL CHECK (pos > 0)
) STRICT, WITHOUT ROWID;

-- How far a store that forwards events into this database has come with each of its streams.
CREATE TABLE event_received (
    source TEXT NOT NULL,
    stream TEXT NOT NULL,
    pos    INTEGER NOT NULL CHECK (pos > 0),
    PRIMARY KEY (source, stream)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER event_rows_are_immutable BEFORE UPDATE ON event_rows
BEGIN
    SELECT RAISE(ABORT, 'event rows are append-only');
END;

CREATE TRIGGER event_segments_are_immutable BEFORE UPDATE ON event_segments
BEGIN
    SELECT RAISE(ABORT, 'event segments are append-only');
END;
