-- The runtime layer of every router on the box. The file may vanish at any time: reading the devices restores it.
CREATE TABLE resource_runtime (
    scope TEXT NOT NULL,
    uid BLOB NOT NULL CHECK (length(uid) = 16),
    runtime TEXT NOT NULL,
    PRIMARY KEY (scope, uid)
) STRICT, WITHOUT ROWID;
