-- How each past incarnation of hot.db ended.
CREATE TABLE event_epochs (
    epoch     INTEGER PRIMARY KEY CHECK (epoch > 0),
    -- clean: everything up to after_seq is accounted for and nothing came after it. lost: events after it may be gone.
    ending    TEXT NOT NULL CHECK (ending IN ('clean', 'lost')),
    after_seq INTEGER NOT NULL CHECK (after_seq >= 0),
    wall_ms   INTEGER NOT NULL
) STRICT;

-- The keys that seal the bodies of events with a subject. Rows are only ever added at the end and changed in place, so
-- that SQLite leaves no copy of a key in the unused part of a page.
CREATE TABLE event_subjects (
    number      INTEGER PRIMARY KEY,
    key_id      BLOB NOT NULL UNIQUE CHECK (length(key_id) = 16),
    subject     TEXT NOT NULL,
    -- Sealed under the master key; overwritten with zeros of the same length when the subject is shredded.
    sealed_key  BLOB NOT NULL,
    created_ms  INTEGER NOT NULL,
    -- 0 while the key is in use.
    shredded_ms INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE INDEX event_subjects_by_name ON event_subjects (subject);
