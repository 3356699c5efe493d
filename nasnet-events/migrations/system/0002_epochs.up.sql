-- How each past incarnation of hot.db ended.
CREATE TABLE event_epochs (
    epoch     INTEGER PRIMARY KEY CHECK (epoch > 0),
    -- clean: everything up to after_seq is accounted for and nothing came after it. lost: events after it may be gone.
    ending    TEXT NOT NULL CHECK (ending IN ('clean', 'lost')),
    after_seq INTEGER NOT NULL CHECK (after_seq >= 0),
    wall_ms   INTEGER NOT NULL
) STRICT;

-- How long the fleet had been running when the order of events stood where: ages that no clock can fake.
CREATE TABLE event_ages (
    pos       INTEGER PRIMARY KEY CHECK (pos >= 0),
    -- Time all boots had run until then, in which a mark was made. Time between them is not counted.
    uptime_ms INTEGER NOT NULL CHECK (uptime_ms >= 0),
    boot      BLOB NOT NULL CHECK (length(boot) = 16),
    boottime_ms INTEGER NOT NULL,
    wall_ms   INTEGER NOT NULL,
    synced    INTEGER NOT NULL CHECK (synced IN (0, 1))
) STRICT;
