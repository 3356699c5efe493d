CREATE TABLE users (
    id            BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    name          TEXT NOT NULL UNIQUE,
    -- A PHC string; parameters and salt are part of it.
    password_hash TEXT NOT NULL CHECK (password_hash GLOB '$argon2id$*'),
    -- Opaque to this crate.
    role          TEXT NOT NULL,
    disabled      INTEGER NOT NULL DEFAULT 0 CHECK (disabled IN (0, 1)),
    created_ms    INTEGER NOT NULL,
    updated_ms    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE sessions (
    id               BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    -- SHA-256 of the token: the file does not tell how to get in.
    token_hash       BLOB NOT NULL UNIQUE CHECK (length(token_hash) = 32),
    user_id          BLOB NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    -- The age of a session is told by the boot clock while the boot lasts, and by synced wall clocks beyond it.
    ttl_ms           INTEGER NOT NULL CHECK (ttl_ms > 0),
    issued_ms        INTEGER NOT NULL,
    issued_quality   TEXT NOT NULL CHECK (issued_quality IN ('synced', 'unsynced')),
    issued_boot      BLOB NOT NULL CHECK (length(issued_boot) = 16),
    issued_uptime_ms INTEGER NOT NULL,
    ip_address       TEXT,
    revoked_ms       INTEGER,
    last_seen_ms     INTEGER
) STRICT, WITHOUT ROWID;

CREATE INDEX sessions_of_user ON sessions (user_id);

CREATE TABLE api_keys (
    id               BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    -- The part of a key that may be shown.
    prefix           TEXT NOT NULL UNIQUE CHECK (length(prefix) = 12),
    key_hash         BLOB NOT NULL CHECK (length(key_hash) = 32),
    user_id          BLOB NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name             TEXT NOT NULL,
    scopes           TEXT NOT NULL CHECK (json_type(scopes) = 'array'),
    -- NULL: it does not expire.
    ttl_ms           INTEGER CHECK (ttl_ms > 0),
    issued_ms        INTEGER NOT NULL,
    issued_quality   TEXT NOT NULL CHECK (issued_quality IN ('synced', 'unsynced')),
    issued_boot      BLOB NOT NULL CHECK (length(issued_boot) = 16),
    issued_uptime_ms INTEGER NOT NULL,
    revoked_ms       INTEGER,
    last_used_ms     INTEGER
) STRICT, WITHOUT ROWID;

CREATE INDEX api_keys_of_user ON api_keys (user_id);

CREATE TABLE marketplace_features (
    id          TEXT NOT NULL PRIMARY KEY,
    name        TEXT NOT NULL,
    version     TEXT NOT NULL,
    category    TEXT NOT NULL,
    state       TEXT NOT NULL CHECK (state IN ('available', 'installed', 'disabled', 'withdrawn')),
    -- Opaque to this crate.
    manifest    TEXT NOT NULL CHECK (json_type(manifest) = 'object' AND length(manifest) <= 65536),
    updated_ms  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE fleet_metrics (
    -- Days since 1970-01-01, UTC.
    day      INTEGER NOT NULL PRIMARY KEY,
    -- How many routers had a value.
    routers  INTEGER NOT NULL CHECK (routers >= 0),
    -- {"metric": sum over these routers}
    totals   TEXT NOT NULL CHECK (json_type(totals) = 'object'),
    as_of_ms INTEGER NOT NULL
) STRICT;

-- What migrate_all did to each database, the newest word for each.
CREATE TABLE migration_outcomes (
    router_id TEXT NOT NULL PRIMARY KEY REFERENCES routers (id) ON DELETE CASCADE,
    outcome   TEXT NOT NULL CHECK (outcome IN ('current', 'migrated', 'failed')),
    detail    TEXT,
    wall_ms   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
