CREATE TABLE resource (
    id INTEGER PRIMARY KEY,
    uid BLOB NOT NULL UNIQUE CHECK (length(uid) = 16),
    scoped_id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    name TEXT NOT NULL CHECK (length(name) > 0),
    schema_revision INTEGER NOT NULL,
    -- One JSON document per layer, each with a version of its own, so that writers of different layers never conflict.
    configuration TEXT NOT NULL,
    configuration_version INTEGER NOT NULL CHECK (configuration_version >= 1),
    metadata TEXT NOT NULL,
    metadata_version INTEGER NOT NULL CHECK (metadata_version >= 1),
    -- Numbers of rows in resource_deployment: the newest one, and the newest confirmed one. 0 and NULL: none.
    latest_revision INTEGER NOT NULL DEFAULT 0 CHECK (latest_revision >= 0),
    current_revision INTEGER CHECK (current_revision BETWEEN 1 AND latest_revision),
    -- The stamp of the deletion, NULL while the resource lives. The row stays as a tombstone.
    deleted TEXT
) STRICT;

CREATE UNIQUE INDEX resource_by_name ON resource (kind, name) WHERE deleted IS NULL;

-- Append-only: a row is never updated.
CREATE TABLE resource_deployment (
    resource INTEGER NOT NULL REFERENCES resource (id),
    revision INTEGER NOT NULL CHECK (revision >= 1),
    generation INTEGER NOT NULL CHECK (generation >= 1),
    operation BLOB NOT NULL CHECK (length(operation) = 16),
    outcome TEXT NOT NULL CHECK (outcome IN ('confirmed', 'rolled_back', 'failed', 'indeterminate')),
    body TEXT NOT NULL,
    PRIMARY KEY (resource, revision)
) STRICT, WITHOUT ROWID;

-- The only place that holds the bytes of secrets, and only sealed. Layers and events hold the fingerprint.
CREATE TABLE resource_secret (
    resource INTEGER NOT NULL REFERENCES resource (id),
    field TEXT NOT NULL,
    fingerprint BLOB NOT NULL CHECK (length(fingerprint) = 16),
    version INTEGER NOT NULL,
    sealed BLOB NOT NULL,
    PRIMARY KEY (resource, field, fingerprint)
) STRICT, WITHOUT ROWID;
