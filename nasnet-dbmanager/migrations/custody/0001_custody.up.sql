-- What is being done to the directory of a router: written before the first step, removed with the last.
CREATE TABLE router_intents (
    router_id TEXT    NOT NULL PRIMARY KEY,
    action    TEXT    NOT NULL CHECK (action IN ('retire', 'reinstate', 'purge', 'quarantine', 'restore')),
    -- The name below quarantine/ or safety/ that the step moves the present directory to; '' where there is none.
    directory TEXT    NOT NULL,
    cause     TEXT    NOT NULL,
    begun_ms  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE retired_routers (
    router_id  TEXT    NOT NULL PRIMARY KEY REFERENCES routers (id) ON DELETE CASCADE,
    retired_ms INTEGER NOT NULL,
    -- An age counted from a clock that was not set means nothing.
    quality    TEXT    NOT NULL CHECK (quality IN ('synced', 'unsynced'))
) STRICT, WITHOUT ROWID;

-- Directories set aside: damaged ones, and the ones a restore replaced.
CREATE TABLE set_aside (
    directory     TEXT    NOT NULL PRIMARY KEY,
    router_id     TEXT    NOT NULL,
    reason        TEXT    NOT NULL CHECK (reason IN ('damaged', 'replaced')),
    cause         TEXT    NOT NULL,
    bytes         INTEGER NOT NULL CHECK (bytes >= 0),
    set_aside_ms  INTEGER NOT NULL,
    -- JSON; NULL until something took its place.
    restored_from TEXT CHECK (json_valid(restored_from)),
    lost          TEXT CHECK (json_valid(lost))
) STRICT, WITHOUT ROWID;

CREATE INDEX set_aside_by_router ON set_aside (router_id, set_aside_ms);

-- Where backups are; each is verified again before it is used.
CREATE TABLE backups (
    id         TEXT    NOT NULL PRIMARY KEY,
    path       TEXT    NOT NULL,
    which      TEXT    NOT NULL,
    created_ms INTEGER NOT NULL,
    bytes      INTEGER NOT NULL CHECK (bytes >= 0)
) STRICT, WITHOUT ROWID;

CREATE INDEX backups_by_path ON backups (path);
