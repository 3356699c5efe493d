-- What all processes of the fleet wrote to databases on flash, by day and cause. It lives in memory; the day's sum is
-- saved in system.db from time to time and continues from there after a boot.
CREATE TABLE flash_ledger (
    day            INTEGER NOT NULL,                                 -- days since 1970, by the wall clock
    cause          TEXT NOT NULL,
    bytes          INTEGER NOT NULL CHECK (bytes >= 0),
    dirty_4k_bytes INTEGER NOT NULL CHECK (dirty_4k_bytes >= 0),
    syncs          INTEGER NOT NULL CHECK (syncs >= 0),
    PRIMARY KEY (day, cause)
) STRICT, WITHOUT ROWID;
