-- locks.db lives on tmpfs: everything here dies with the boot. What must outlast it, the end of the reserved block of
-- fencing tokens, is a counter of system.db.

CREATE TABLE next_token (
    id        INTEGER PRIMARY KEY CHECK (id = 1),
    next      INTEGER NOT NULL CHECK (next > 0),
    block_end INTEGER NOT NULL CHECK (block_end >= next)   -- the first token that is not reserved
) STRICT;

CREATE TABLE session (
    id        BLOB    PRIMARY KEY CHECK (length(id) = 16),
    boot      BLOB    NOT NULL CHECK (length(boot) = 16),
    opened_ms INTEGER NOT NULL                             -- wall clock, for people
) STRICT, WITHOUT ROWID;

-- A lease and the index of its keys share the writing of a grant with next_token and nothing else: each further index is
-- one more page. The program keeps lease_key in step, in the transaction that stores or removes the lease.
CREATE TABLE lease (
    session       BLOB    NOT NULL CHECK (length(session) = 16),
    id            BLOB    NOT NULL CHECK (length(id) = 16),
    token         INTEGER NOT NULL CHECK (token > 0),
    keys          TEXT    NOT NULL,                        -- JSON array; lease_key is its index
    mode          TEXT    NOT NULL CHECK (mode IN ('exclusive', 'shared')),
    actor         TEXT    NOT NULL,
    purpose       TEXT    NOT NULL,
    origin        TEXT    NOT NULL,
    since_ms      INTEGER NOT NULL,                        -- wall clock, for people
    ttl_ms        INTEGER NOT NULL CHECK (ttl_ms > 0),
    boot          BLOB    NOT NULL CHECK (length(boot) = 16),
    deadline_ms   INTEGER NOT NULL CHECK (deadline_ms >= 0),  -- CLOCK_BOOTTIME of that boot
    hold_until_ms INTEGER CHECK (hold_until_ms >= 0),
    broken_by     TEXT,
    broken_reason TEXT,
    PRIMARY KEY (session, id),
    CHECK ((broken_by IS NULL) = (broken_reason IS NULL))
) STRICT, WITHOUT ROWID;

CREATE TABLE lease_key (
    key     TEXT NOT NULL,
    session BLOB NOT NULL,
    id      BLOB NOT NULL,
    PRIMARY KEY (key, session, id)
) STRICT, WITHOUT ROWID;

-- The queue: one row for each request that waits, served in the order of its number.
CREATE TABLE ticket (
    number      INTEGER PRIMARY KEY AUTOINCREMENT,
    id          BLOB    NOT NULL UNIQUE CHECK (length(id) = 16),
    session     BLOB    NOT NULL CHECK (length(session) = 16),
    keys        TEXT    NOT NULL,
    mode        TEXT    NOT NULL CHECK (mode IN ('exclusive', 'shared')),
    actor       TEXT    NOT NULL,
    purpose     TEXT    NOT NULL,
    origin      TEXT    NOT NULL,
    since_ms    INTEGER NOT NULL,
    boot        BLOB    NOT NULL CHECK (length(boot) = 16),
    deadline_ms INTEGER NOT NULL CHECK (deadline_ms >= 0)
) STRICT;

CREATE INDEX ticket_by_session ON ticket (session);

CREATE TABLE ticket_key (
    key    TEXT    NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (key, number)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER ticket_drawn AFTER INSERT ON ticket BEGIN
    INSERT INTO ticket_key (key, number) SELECT value, NEW.number FROM json_each(NEW.keys);
END;

CREATE TRIGGER ticket_removed AFTER DELETE ON ticket BEGIN
    DELETE FROM ticket_key
    WHERE (key, number) IN (SELECT value, OLD.number FROM json_each(OLD.keys));
END;
