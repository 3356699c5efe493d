-- Where each consumer stands now, in tmpfs: every acknowledgement is written here and costs no flash.
CREATE TABLE event_progress (
    name        TEXT PRIMARY KEY,
    -- Of the consumer in system.db: where a forgotten one stood is nothing to the next of its name.
    uid         BLOB NOT NULL CHECK (length(uid) = 16),
    pos         INTEGER NOT NULL CHECK (pos >= 0),
    told        INTEGER NOT NULL CHECK (told >= 0),
    -- The session and the subscription that read as this consumer, NULL when none does.
    session     BLOB CHECK (session IS NULL OR length(session) = 16),
    instance    BLOB CHECK (instance IS NULL OR length(instance) = 16),
    -- When that was last confirmed, by the time since boot.
    boottime_ms INTEGER NOT NULL,
    CHECK ((session IS NULL) = (instance IS NULL))
) STRICT, WITHOUT ROWID;
