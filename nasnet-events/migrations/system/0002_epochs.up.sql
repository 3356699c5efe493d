-- How each past incarnation of hot.db ended.
CREATE TABLE event_epochs (
    epoch     INTEGER PRIMARY KEY CHECK (epoch > 0),
    -- clean: everything up to after_seq is accounted for and nothing came after it. lost: events after it may be gone.
    ending    TEXT NOT NULL CHECK (ending IN ('clean', 'lost')),
    after_seq INTEGER NOT NULL CHECK (after_seq >= 0),
    wall_ms   INTEGER NOT NULL
) STRICT;
