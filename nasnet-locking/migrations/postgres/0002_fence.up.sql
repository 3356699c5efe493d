-- The highest fencing token that has committed a write, by key. It lives in the database whose rows it guards.
CREATE TABLE nasnet_fence (
    key   text COLLATE "C" PRIMARY KEY,
    token bigint NOT NULL CHECK (token > 0)
);
