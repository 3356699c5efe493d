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
    crc            INTEGER NOT NULL
    -- No index on (stream, version): it would cost a page of flash with each event (docs/adr/0010). The versions
    -- are known in memory, and the transaction that adds a row looks at those that came lately.
) STRICT;

-- What zstd is told beforehand about the events of this scope. Versions add up: one is never changed, nor deleted while
-- a segment needs it.
CREATE TABLE event_dictionaries (
    -- CRC32C of the body.
    id       INTEGER PRIMARY KEY CHECK (id > 0),
    -- Position of the newest event it was made from: the one with the highest is used.
    made_pos INTEGER NOT NULL CHECK (made_pos > 0),
    -- Numbers of the event types it was made from.
    kinds    BLOB NOT NULL,
    events   INTEGER NOT NULL CHECK (events > 0),
    body     BLOB NOT NULL
) STRICT;

CREATE TRIGGER event_dictionaries_are_immutable BEFORE UPDATE ON event_dictionaries
BEGIN
    SELECT RAISE(ABORT, 'event dictionaries are never changed');
END;

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
    -- What the body was compressed with, NULL = without.
    dictionary   INTEGER REFERENCES event_dictionaries (id),
    -- SHA-256 chain over the events in the segments of this scope, before and after this one.
    prev_digest  BLOB NOT NULL CHECK (length(prev_digest) = 32),
    digest       BLOB NOT NULL CHECK (length(digest) = 32),
    -- CRC32C over all other columns.
    crc          INTEGER NOT NULL,
    -- Where the body is in the annexes of its kind when it is not here (docs/adr/0010). What no row names there means
    -- nothing.
    file         INTEGER CHECK (file > 0),
    file_offset  INTEGER CHECK ((file_offset IS NULL) = (file IS NULL)),
    file_bytes   INTEGER CHECK ((file_bytes IS NULL) = (file IS NULL)),
    -- Last, so that the columns above are read without its pages.
    body         BLOB CHECK ((body IS NULL) = (file IS NOT NULL))
) STRICT;

-- Rows that were sealed: many in one block, which goes on in the chain of the rows. Their positions lie between those of
-- flushed segments, so they have a table of their own. Columns as above.
CREATE TABLE event_sealed (
    first_pos    INTEGER PRIMARY KEY CHECK (first_pos > 0),
    last_pos     INTEGER NOT NULL CHECK (last_pos >= first_pos),
    through_pos  INTEGER NOT NULL CHECK (through_pos >= last_pos),
    complete_pos INTEGER NOT NULL CHECK (complete_pos >= 0),
    events       INTEGER NOT NULL CHECK (events > 0),
    wall_min_ms  INTEGER NOT NULL,
    wall_max_ms  INTEGER NOT NULL,
    kinds        BLOB NOT NULL,
    streams      BLOB NOT NULL,
    raw_bytes    INTEGER NOT NULL,
    dictionary   INTEGER REFERENCES event_dictionaries (id),
    prev_digest  BLOB NOT NULL CHECK (length(prev_digest) = 32),
    digest       BLOB NOT NULL CHECK (length(digest) = 32),
    crc          INTEGER NOT NULL,
    file         INTEGER CHECK (file > 0),
    file_offset  INTEGER CHECK ((file_offset IS NULL) = (file IS NULL)),
    file_bytes   INTEGER CHECK ((file_bytes IS NULL) = (file IS NULL)),
    body         BLOB CHECK ((body IS NULL) = (file IS NOT NULL))
) STRICT;

CREATE TABLE event_cursors (
    name TEXT PRIMARY KEY,
    pos  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Which part of an archive holds nothing but Low events that was not here when it was written (docs/adr/0015): after a
-- position, up to where its chain had this digest. Of the file with this uid.
CREATE TABLE event_copied (
    one       INTEGER PRIMARY KEY CHECK (one = 1),
    file_uid  BLOB NOT NULL CHECK (length(file_uid) = 16),
    after_pos INTEGER NOT NULL CHECK (after_pos >= 0),
    last_pos  INTEGER NOT NULL CHECK (last_pos > after_pos),
    digest    BLOB NOT NULL CHECK (length(digest) = 32)
) STRICT;

-- Where the two chains stood behind rows and segments that were removed, so that they go on and what is left can still be
-- checked. Of several removed in a row the last one is kept.
CREATE TABLE event_chain (
    lane   TEXT NOT NULL CHECK (lane IN ('rows', 'segments')),
    pos    INTEGER NOT NULL CHECK (pos > 0),
    digest BLOB NOT NULL CHECK (length(digest) = 32),
    PRIMARY KEY (lane, pos)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER event_rows_leave_their_digest AFTER DELETE ON event_rows
BEGIN
    INSERT INTO event_chain (lane, pos, digest) VALUES ('rows', OLD.pos, OLD.digest);
    DELETE FROM event_chain WHERE lane = 'rows'
        AND pos = (SELECT MAX(c.pos) FROM event_chain c WHERE c.lane = 'rows' AND c.pos < OLD.pos)
        AND NOT EXISTS (SELECT 1 FROM event_rows r WHERE r.pos > event_chain.pos AND r.pos < OLD.pos)
        AND NOT EXISTS (SELECT 1 FROM event_sealed s WHERE s.first_pos > event_chain.pos AND s.first_pos <= OLD.pos);
    DELETE FROM event_chain WHERE lane = 'rows' AND pos = OLD.pos
        AND EXISTS (SELECT 1 FROM event_chain c WHERE c.lane = 'rows' AND c.pos > OLD.pos
                    AND c.pos < COALESCE((SELECT MIN(r.pos) FROM event_rows r WHERE r.pos > OLD.pos), 9223372036854775807)
                    AND c.pos < COALESCE((SELECT MIN(s.first_pos) FROM event_sealed s WHERE s.first_pos > OLD.pos),
                                         9223372036854775807));
END;

-- Rows that were sealed left theirs when they went, in the same chain.
CREATE TRIGGER event_sealed_leave_their_digest AFTER DELETE ON event_sealed
BEGIN
    INSERT INTO event_chain (lane, pos, digest) VALUES ('rows', OLD.last_pos, OLD.digest)
        ON CONFLICT (lane, pos) DO NOTHING;
    DELETE FROM event_chain WHERE lane = 'rows'
        AND pos = (SELECT MAX(c.pos) FROM event_chain c WHERE c.lane = 'rows' AND c.pos < OLD.last_pos)
        AND NOT EXISTS (SELECT 1 FROM event_rows r WHERE r.pos > event_chain.pos AND r.pos < OLD.last_pos)
        AND NOT EXISTS (SELECT 1 FROM event_sealed s WHERE s.first_pos > event_chain.pos AND s.first_pos < OLD.last_pos);
    DELETE FROM event_chain WHERE lane = 'rows' AND pos = OLD.last_pos
        AND EXISTS (SELECT 1 FROM event_chain c WHERE c.lane = 'rows' AND c.pos > OLD.last_pos
                    AND c.pos < COALESCE((SELECT MIN(r.pos) FROM event_rows r WHERE r.pos > OLD.last_pos),
                                         9223372036854775807)
                    AND c.pos < COALESCE((SELECT MIN(s.first_pos) FROM event_sealed s WHERE s.first_pos > OLD.last_pos),
                                         9223372036854775807));
END;

CREATE TRIGGER event_segments_leave_their_digest AFTER DELETE ON event_segments
BEGIN
    INSERT INTO event_chain (lane, pos, digest) VALUES ('segments', OLD.last_pos, OLD.digest);
    DELETE FROM event_chain WHERE lane = 'segments'
        AND pos = (SELECT MAX(c.pos) FROM event_chain c WHERE c.lane = 'segments' AND c.pos < OLD.last_pos)
        AND NOT EXISTS (SELECT 1 FROM event_segments s WHERE s.first_pos > event_chain.pos AND s.first_pos < OLD.last_pos);
    DELETE FROM event_chain WHERE lane = 'segments' AND pos = OLD.last_pos
        AND EXISTS (SELECT 1 FROM event_chain c WHERE c.lane = 'segments' AND c.pos > OLD.last_pos AND c.pos <
                    COALESCE((SELECT MIN(s.first_pos) FROM event_segments s WHERE s.first_pos > OLD.last_pos),
                             9223372036854775807));
END;

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

CREATE TRIGGER event_sealed_are_immutable BEFORE UPDATE ON event_sealed
BEGIN
    SELECT RAISE(ABORT, 'event segments are append-only');
END;

CREATE TRIGGER event_segments_are_immutable BEFORE UPDATE ON event_segments
BEGIN
    SELECT RAISE(ABORT, 'event segments are append-only');
END;

-- What was removed from this scope, or with the file that this one took the place of, although somebody may still have
-- wanted it; in system.db also from a hot tier, and with routers that are gone. Few rows: neighbours are joined.
CREATE TABLE event_truncated (
    id          INTEGER PRIMARY KEY,
    after_pos   INTEGER NOT NULL CHECK (after_pos >= 0),
    through_pos INTEGER NOT NULL CHECK (through_pos > after_pos),
    -- 0 when the database is an older one, or damaged, and nobody can tell.
    events      INTEGER NOT NULL CHECK (events > 0 OR (events = 0 AND by IN ('left', 'restored'))),
    -- Those of them that were to reach flash and did not.
    lost        INTEGER NOT NULL CHECK (lost BETWEEN 0 AND events),
    -- retired: they had not reached flash when their router went. left: they had.
    by          TEXT NOT NULL CHECK (by IN ('shed', 'retired', 'left', 'restored', 'retention', 'guard')),
    -- The consumer whose guard had held it back for too long.
    consumer    TEXT CHECK ((consumer IS NOT NULL) = (by = 'guard')),
    scope       TEXT
) STRICT;

-- The database came from a backup: the flushed events up to here that it lacks have to be flushed again. What other databases
-- claim to be safe is not, until then.
CREATE TABLE event_restored (
    one       INTEGER PRIMARY KEY CHECK (one = 1),
    until_pos INTEGER NOT NULL CHECK (until_pos >= 0)
) STRICT;

-- The highest version of each stream from which retention removed events: versions are never given again.
CREATE TABLE event_tops (
    stream  INTEGER PRIMARY KEY REFERENCES event_names (id),
    version INTEGER NOT NULL CHECK (version > 0),
    -- No event after here was removed.
    pos     INTEGER NOT NULL CHECK (pos > 0),
    -- Which versions were removed, as stretches: a version that is missing and not among them never was, or was lost.
    removed BLOB NOT NULL
) STRICT;

-- Up to where events may be deleted; moves in the transaction that deletes them, and never back.
CREATE TABLE event_retained (
    -- -3, -2, -1: rows of class Critical, Normal, Low. -4: rows that were sealed. -5: segments of sealed rows.
    -- 0: segments. Above: rows of one type.
    what        INTEGER PRIMARY KEY CHECK (what >= -5),
    through_pos INTEGER NOT NULL CHECK (through_pos >= 0)
) STRICT;

CREATE TRIGGER event_rows_are_retained BEFORE DELETE ON event_rows
WHEN OLD.pos > COALESCE((SELECT MAX(through_pos) FROM event_retained
                         WHERE what IN (-4, -1 - (OLD.flags & 3), OLD.kind)), 0)
BEGIN
    SELECT RAISE(ABORT, 'event rows are deleted by retention alone');
END;

CREATE TRIGGER event_segments_are_retained BEFORE DELETE ON event_segments
WHEN OLD.last_pos > COALESCE((SELECT through_pos FROM event_retained WHERE what = 0), 0)
BEGIN
    SELECT RAISE(ABORT, 'event segments are deleted by retention alone');
END;

CREATE TRIGGER event_sealed_are_retained BEFORE DELETE ON event_sealed
WHEN OLD.last_pos > COALESCE((SELECT through_pos FROM event_retained WHERE what = -5), 0)
BEGIN
    SELECT RAISE(ABORT, 'event segments are deleted by retention alone');
END;

CREATE TRIGGER event_retained_grows BEFORE UPDATE ON event_retained
WHEN NEW.what <> OLD.what OR NEW.through_pos < OLD.through_pos
BEGIN
    SELECT RAISE(ABORT, 'the mark of retention never goes back');
END;

CREATE TRIGGER event_retained_stays BEFORE DELETE ON event_retained
BEGIN
    SELECT RAISE(ABORT, 'the mark of retention stays');
END;

CREATE TRIGGER event_retained_is_one BEFORE INSERT ON event_retained
WHEN EXISTS (SELECT 1 FROM event_retained WHERE what = NEW.what AND through_pos > NEW.through_pos)
BEGIN
    SELECT RAISE(ABORT, 'the mark of retention never goes back');
END;

CREATE TRIGGER event_tops_grow BEFORE UPDATE ON event_tops
WHEN NEW.version < OLD.version OR NEW.pos < OLD.pos
BEGIN
    SELECT RAISE(ABORT, 'a version is never given again');
END;
