-- hot.db lives in tmpfs: one row for a block of events, a reservation or a hole in the order.
CREATE TABLE hot_meta (
    one   INTEGER PRIMARY KEY CHECK (one = 1),
    -- Incarnation of this file; the first half of every position allocated in it.
    epoch INTEGER NOT NULL CHECK (epoch > 0),
    -- Every Normal event up to here is on flash. A hint that saves reading: the databases themselves decide.
    flushed_through INTEGER NOT NULL DEFAULT 0 CHECK (flushed_through >= 0)
) STRICT;

CREATE TABLE hot_log (
    -- Rows are contiguous: the next row's first_seq is this one's first_seq + count. The newest row is never deleted,
    -- since it says where the order goes on.
    first_seq INTEGER PRIMARY KEY CHECK (first_seq > 0),
    count     INTEGER NOT NULL CHECK (count > 0),
    -- block: events that live here first. reserved: events of a transaction that has not ended yet.
    -- mirrored: events that are rows of a database on flash. void: a rolled-back reservation.
    state     TEXT NOT NULL CHECK (state IN ('block', 'reserved', 'mirrored', 'void')),
    -- Scope whose database decides a reservation, and the session that holds it.
    scope     TEXT,
    owner     BLOB CHECK (owner IS NULL OR length(owner) = 16),
    -- first_seq of the reservation the row belongs or belonged to.
    reservation INTEGER,
    body      BLOB,
    CHECK ((state = 'block') = (scope IS NULL)),
    CHECK ((state = 'block') = (reservation IS NULL)),
    CHECK ((state = 'reserved') = (owner IS NOT NULL)),
    CHECK ((state = 'void') = (body IS NULL))
) STRICT;

CREATE INDEX hot_log_reserved ON hot_log (first_seq) WHERE state = 'reserved';
