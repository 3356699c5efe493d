-- Leases die with their sessions and sessions with the server, so their tables are unlogged: granting, renewing and
-- releasing writes no WAL but for the sequence, and a crash of the server leaves them empty. What must outlast it is
-- logged: the sequence of fencing tokens, and who broke what.

-- The clock all leases end by, in milliseconds.
CREATE FUNCTION nasnet_lock_now_ms() RETURNS bigint LANGUAGE sql VOLATILE
    AS $$ SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint $$;

CREATE SEQUENCE nasnet_lock_token AS bigint MINVALUE 1 CACHE 1 NO CYCLE;

CREATE UNLOGGED TABLE nasnet_lock_lease (
    token         bigint   PRIMARY KEY CHECK (token > 0),
    id            bytea    NOT NULL UNIQUE CHECK (length(id) = 16),
    session       bytea    NOT NULL CHECK (length(session) = 16),
    session_lock  bigint   NOT NULL,                     -- the advisory lock the session holds while it lives
    keys          text[]   NOT NULL CHECK (cardinality(keys) > 0),
    mode          text     NOT NULL CHECK (mode IN ('exclusive', 'shared')),
    actor         text     NOT NULL,
    purpose       text     NOT NULL,
    origin        text     NOT NULL,
    since_ms      bigint   NOT NULL,
    ttl_ms        bigint   NOT NULL CHECK (ttl_ms > 0),
    deadline_ms   bigint   NOT NULL CHECK (deadline_ms >= 0),
    hold_until_ms bigint   CHECK (hold_until_ms >= 0),
    broken_by     text,
    broken_reason text,
    CHECK ((broken_by IS NULL) = (broken_reason IS NULL))
);

CREATE INDEX nasnet_lock_lease_by_session ON nasnet_lock_lease (session);

CREATE UNLOGGED TABLE nasnet_lock_lease_key (
    key   text COLLATE "C" NOT NULL,
    token bigint           NOT NULL REFERENCES nasnet_lock_lease ON DELETE CASCADE,
    PRIMARY KEY (key, token)
);

CREATE INDEX nasnet_lock_lease_key_by_token ON nasnet_lock_lease_key (token);

-- The queue: one row for each request that waits, served in the order of its number.
CREATE UNLOGGED TABLE nasnet_lock_ticket (
    number       bigint   GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id           bytea    NOT NULL UNIQUE CHECK (length(id) = 16),
    session      bytea    NOT NULL CHECK (length(session) = 16),
    session_lock bigint   NOT NULL,
    keys         text[]   NOT NULL CHECK (cardinality(keys) > 0),
    mode         text     NOT NULL CHECK (mode IN ('exclusive', 'shared')),
    actor        text     NOT NULL,
    purpose      text     NOT NULL,
    origin       text     NOT NULL,
    since_ms     bigint   NOT NULL,
    deadline_ms  bigint   NOT NULL CHECK (deadline_ms >= 0)
);

CREATE INDEX nasnet_lock_ticket_by_session ON nasnet_lock_ticket (session);

CREATE UNLOGGED TABLE nasnet_lock_ticket_key (
    key    text COLLATE "C" NOT NULL,
    number bigint           NOT NULL REFERENCES nasnet_lock_ticket ON DELETE CASCADE,
    PRIMARY KEY (key, number)
);

CREATE INDEX nasnet_lock_ticket_key_by_number ON nasnet_lock_ticket_key (number);

-- Every lease an operator broke, for good.
CREATE TABLE nasnet_lock_break (
    number    bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    broken_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    lease     bytea       NOT NULL CHECK (length(lease) = 16),
    token     bigint      NOT NULL,
    keys      text[]      NOT NULL,
    holder    text        NOT NULL,
    broken_by text        NOT NULL,
    reason    text        NOT NULL
);
