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
    shredded_ms INTEGER NOT NULL DEFAULT 0,
    -- 1 once every file was searched for the destroyed key, and no live one held it.
    searched    INTEGER NOT NULL DEFAULT 0 CHECK (searched IN (0, 1))
) STRICT;

CREATE INDEX event_subjects_by_name ON event_subjects (subject);

-- How long the fleet had been running when the order of events stood where: ages that no clock can fake.
CREATE TABLE event_ages (
    number      INTEGER PRIMARY KEY,
    -- Everything up to here had been appended.
    pos         INTEGER NOT NULL CHECK (pos >= 0),
    -- Time counted until then: from the first to the last mark of each boot. Time between two boots is not counted.
    uptime_ms   INTEGER NOT NULL CHECK (uptime_ms >= 0),
    boot        BLOB NOT NULL CHECK (length(boot) = 16),
    boottime_ms INTEGER NOT NULL
) STRICT;
