CREATE TABLE routers (
    id                    TEXT NOT NULL PRIMARY KEY,
    name                  TEXT NOT NULL,
    host                  TEXT,
    port                  INTEGER CHECK (port BETWEEN 1 AND 65535),
    -- What the last contact said; 'unknown' until there was one.
    status                TEXT NOT NULL DEFAULT 'unknown' CHECK (status IN ('unknown', 'online', 'offline', 'degraded')),
    -- 'provisioning' is the intent to create the database file; it is finished or swept at the next start.
    lifecycle             TEXT NOT NULL CHECK (lifecycle IN ('provisioning', 'active', 'retired', 'quarantined')),
    -- Opaque to this crate.
    capabilities          TEXT CHECK (json_valid(capabilities)),
    capabilities_as_of_ms INTEGER,
    platform              TEXT,
    model                 TEXT,
    version               TEXT,
    -- {"set": version} of the database file when it was last migrated.
    schema_versions       TEXT NOT NULL DEFAULT '{}' CHECK (json_type(schema_versions) = 'object'),
    -- The mark inside the database file; another file under the same name is noticed by it.
    file_uid              BLOB CHECK (length(file_uid) = 16),
    last_backup_ms        INTEGER,
    created_ms            INTEGER NOT NULL,
    created_quality       TEXT NOT NULL CHECK (created_quality IN ('synced', 'unsynced')),
    created_boot          BLOB NOT NULL CHECK (length(created_boot) = 16),
    updated_ms            INTEGER NOT NULL,
    CHECK ((capabilities IS NULL) = (capabilities_as_of_ms IS NULL)),
    CHECK (lifecycle = 'provisioning' OR file_uid IS NOT NULL)
) STRICT, WITHOUT ROWID;

CREATE TABLE router_secrets (
    router_id   TEXT NOT NULL REFERENCES routers (id) ON DELETE CASCADE,
    name        TEXT NOT NULL,
    -- Part of what a sealed value is bound to. It goes on growing after a removal, so an old value put back does not open.
    version     INTEGER NOT NULL CHECK (version > 0),
    -- NULL once removed.
    sealed      BLOB,
    -- Keyed; tells that a value is unchanged without opening it.
    fingerprint BLOB CHECK (length(fingerprint) = 16),
    updated_ms  INTEGER NOT NULL,
    PRIMARY KEY (router_id, name),
    CHECK ((sealed IS NULL) = (fingerprint IS NULL))
) STRICT, WITHOUT ROWID;

-- Keys of sealed values, wrapped by the master key: that of the fleet ('system'), and that of each router with secrets.
CREATE TABLE data_keys (
    scope      TEXT NOT NULL PRIMARY KEY,
    wrapped    BLOB NOT NULL,
    -- Tells which master key wrapped it, and nothing of it.
    master_id  BLOB NOT NULL CHECK (length(master_id) = 16),
    created_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TRIGGER data_keys_go_with_their_router AFTER DELETE ON routers
BEGIN
    DELETE FROM data_keys WHERE scope = OLD.id;
END;

CREATE TABLE global_settings (
    category       TEXT NOT NULL,
    key            TEXT NOT NULL,
    value          TEXT NOT NULL CHECK (json_valid(value)),
    -- The version of the value's own form, kept by whoever owns the category.
    schema_version INTEGER NOT NULL CHECK (schema_version >= 0),
    updated_ms     INTEGER NOT NULL,
    PRIMARY KEY (category, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE audit_log (
    id         INTEGER NOT NULL PRIMARY KEY,
    category   TEXT NOT NULL,
    action     TEXT NOT NULL,
    actor      TEXT,
    target     TEXT,
    details    TEXT CHECK (json_valid(details) AND length(details) <= 65536),
    ip_address TEXT,
    wall_ms    INTEGER NOT NULL,
    quality    TEXT NOT NULL CHECK (quality IN ('synced', 'unsynced')),
    boot       BLOB NOT NULL CHECK (length(boot) = 16)
) STRICT;

-- Entries up to the mark may be removed, none beyond it.
CREATE TABLE audit_retention (
    one              INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    retained_through INTEGER NOT NULL
) STRICT;

INSERT INTO audit_retention (one, retained_through) VALUES (1, 0);

-- Ids only grow, past removed entries too; this also keeps REPLACE from exchanging an entry.
CREATE TRIGGER audit_log_appends BEFORE INSERT ON audit_log
WHEN NEW.id <= (SELECT MAX(COALESCE((SELECT MAX(id) FROM audit_log), 0), retained_through) FROM audit_retention)
BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only: an entry can only be added at its end');
END;

CREATE TRIGGER audit_log_keeps BEFORE UPDATE ON audit_log
BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only: an entry cannot be changed');
END;

CREATE TRIGGER audit_log_retains BEFORE DELETE ON audit_log
WHEN OLD.id > (SELECT retained_through FROM audit_retention)
BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only: an entry beyond the retention mark cannot be removed');
END;

CREATE TRIGGER audit_retention_grows BEFORE UPDATE ON audit_retention
WHEN NEW.one <> OLD.one
  OR NEW.retained_through < OLD.retained_through
  OR NEW.retained_through > MAX(OLD.retained_through, COALESCE((SELECT MAX(id) FROM audit_log), 0))
BEGIN
    SELECT RAISE(ABORT, 'the retention mark of the audit log only grows, up to its newest entry');
END;

CREATE TRIGGER audit_retention_stays BEFORE DELETE ON audit_retention
BEGIN
    SELECT RAISE(ABORT, 'the retention mark of the audit log cannot be removed');
END;

CREATE TRIGGER audit_retention_is_one BEFORE INSERT ON audit_retention
BEGIN
    SELECT RAISE(ABORT, 'the audit log has one retention mark');
END;

CREATE TABLE counters (
    name  TEXT NOT NULL PRIMARY KEY,
    -- The largest number given out so far.
    value INTEGER NOT NULL CHECK (value >= 0)
) STRICT, WITHOUT ROWID;

-- An upsert fires this too, before it becomes an update.
CREATE TRIGGER counters_never_restart BEFORE INSERT ON counters
WHEN NEW.value < (SELECT value FROM counters WHERE name = NEW.name)
BEGIN
    SELECT RAISE(ABORT, 'a counter never goes back');
END;

CREATE TRIGGER counters_never_shrink BEFORE UPDATE ON counters
WHEN NEW.value < OLD.value OR NEW.name <> OLD.name
BEGIN
    SELECT RAISE(ABORT, 'a counter never goes back');
END;

CREATE TRIGGER counters_stay BEFORE DELETE ON counters
BEGIN
    SELECT RAISE(ABORT, 'a counter never goes away');
END;
