-- hot.db lives in tmpfs: one row for a block of events, a reservation or a hole in the order.
CREATE TABLE hot_meta (
    one   INTEGER PRIMARY KEY CHECK (one = 1),
    -- Incarnation of this file; the first half of every position allocated in it.
    epoch INTEGER NOT NULL CHECK (epoch > 0),
    -- Every Normal event up to here is on flash, those of the scopes in hot_behind aside. A hint that saves reading: the
    -- databases themselves decide.
    flushed_through INTEGER NOT NULL DEFAULT 0 CHECK (flushed_through >= 0)
) STRICT;

-- Scopes whose database did not take its events, or came back from a backup without some of them: they are on flash up to
-- here only. They hold nobody else up (docs/adr/0014).
CREATE TABLE hot_behind (
    scope   TEXT PRIMARY KEY,
    through INTEGER NOT NULL CHECK (through >= 0)
) STRICT, WITHOUT ROWID;

CREATE TABLE hot_log (
    -- Rows are contiguous: the next row's first_seq is this one's first_seq + count. The newest row is never deleted,
    -- since it says where the order goes on.
    first_seq INTEGER PRIMARY KEY CHECK (first_seq > 0),
    count     INTEGER NOT NULL CHECK (count > 0),
    -- block: events that live here first. reserved: events of a transaction that has not ended yet.
    -- mirrored: events that are rows of a database on flash. void: a rolled-back reservation. shed: a block or a mirror
    -- none of whose events is here any more.
    state     TEXT NOT NULL CHECK (state IN ('block', 'reserved', 'mirrored', 'void', 'shed')),
    -- Scope whose database decides a reservation, and the session that holds it.
    scope     TEXT,
    owner     BLOB CHECK (owner IS NULL OR length(owner) = 16),
    -- first_seq of the reservation the row belongs or belonged to.
    reservation INTEGER,
    body      BLOB,
    -- Events that are not in the body any more: on flash already, expired, or removed for want of room.
    shed      INTEGER NOT NULL DEFAULT 0 CHECK (shed BETWEEN 0 AND count),
    -- 1 = the database that decides the reservation cannot be asked: readers of all scopes go on without it.
    stalled   INTEGER NOT NULL DEFAULT 0 CHECK (stalled IN (0, 1)),
    CHECK ((state IN ('block', 'shed')) = (scope IS NULL)),
    CHECK ((state IN ('block', 'shed')) = (reservation IS NULL)),
    CHECK ((state = 'reserved') = (owner IS NOT NULL)),
    CHECK ((state IN ('void', 'shed')) = (body IS NULL)),
    CHECK ((state = 'shed') = (shed = count)),
    CHECK (shed = 0 OR state IN ('block', 'shed'))
) STRICT;

-- The highest version of each stream among events that have left the log and are in no database.
CREATE TABLE hot_tops (
    scope   TEXT NOT NULL,
    stream  TEXT NOT NULL,
    version INTEGER NOT NULL CHECK (version > 0),
    PRIMARY KEY (scope, stream)
) STRICT, WITHOUT ROWID;

-- Routers that were purged, and the hole in the order that says so: their events before it are of no database, even if
-- another router has the id by now.
CREATE TABLE hot_purged (
    scope   TEXT PRIMARY KEY,
    through INTEGER NOT NULL CHECK (through > 0)
) STRICT, WITHOUT ROWID;

CREATE INDEX hot_log_reserved ON hot_log (first_seq) WHERE state = 'reserved';

-- What was removed from the log and may be nowhere else. Few rows: neighbours are joined.
CREATE TABLE hot_truncated (
    id        INTEGER PRIMARY KEY,
    first_seq INTEGER NOT NULL CHECK (first_seq > 0),
    last_seq  INTEGER NOT NULL CHECK (last_seq >= first_seq),
    events    INTEGER NOT NULL CHECK (events > 0),
    -- Those of them that had not reached flash and were to.
    lost      INTEGER NOT NULL CHECK (lost BETWEEN 0 AND events),
    by        TEXT NOT NULL CHECK (by IN ('shed', 'retention')),
    -- 0 = later ones may join it, 1 = being written to system.db, 2 = written there, where it outlives this file.
    saved     INTEGER NOT NULL DEFAULT 0 CHECK (saved IN (0, 1, 2))
) STRICT;
