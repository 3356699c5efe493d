-- The highest fencing token that has committed a write, by key. It lives in the database whose rows it guards.
CREATE TABLE fence (
    key   TEXT    PRIMARY KEY,
    token INTEGER NOT NULL CHECK (token > 0)
) STRICT, WITHOUT ROWID;
