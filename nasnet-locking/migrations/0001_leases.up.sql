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

CREATE TABLE lease (
    token         INTEGER PRIMARY KEY,
    id            BLOB    NOT NULL UNIQUE CHECK (length(id) = 16),
    session       BLOB    NOT NULL CHECK (length(session) = 16),
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
    CHECK ((broken_by IS NULL) = (broken_reason IS NULL))
) STRICT;

CREATE INDEX lease_by_session ON lease (session);

CREATE TABLE lease_key (
    key   TEXT    NOT NULL,
    token INTEGER NOT NULL,
    PRIMARY KEY (key, token)
) STRICT, WITHOUT ROWID;

-- The number of a granted lease is taken and its keys are indexed in the statement that stores it.
CREATE TRIGGER lease_granted AFTER INSERT ON lease BEGIN
    UPDATE next_token SET next = NEW.token + 1 WHERE id = 1;
    INSERT INTO lease_key (key, token) SELECT value, NEW.token FROM json_each(NEW.keys);
END;

CREATE TRIGGER lease_removed AFTER DELETE ON lease BEGIN
    DELETE FROM lease_key
    WHERE (key, token) IN (SELECT value, OLD.token FROM json_each(OLD.keys));
END;

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
