-- When a session or key was last used; system.db gets it once a day.
CREATE TABLE last_use (
    kind       TEXT NOT NULL CHECK (kind IN ('session', 'api_key')),
    id         BLOB NOT NULL CHECK (length(id) = 16),
    wall_ms    INTEGER NOT NULL,
    -- What system.db has.
    written_ms INTEGER,
    PRIMARY KEY (kind, id)
) STRICT, WITHOUT ROWID;

-- The last value of each metric of each router.
CREATE TABLE fleet_metrics_live (
    router_id TEXT NOT NULL,
    name      TEXT NOT NULL,
    value     INTEGER NOT NULL,
    as_of_ms  INTEGER NOT NULL,
    PRIMARY KEY (router_id, name)
) STRICT, WITHOUT ROWID;
