-- The device this file belongs to: another serial number at the same address stops every write.
CREATE TABLE reconcile_device (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    serial TEXT NOT NULL,
    facts TEXT NOT NULL,
    seen_ms INTEGER NOT NULL
) STRICT;

-- One row an operation, holding its plan with every pre-image and every undo.
CREATE TABLE reconcile_op (
    id INTEGER PRIMARY KEY,
    op_id BLOB NOT NULL UNIQUE CHECK (length(op_id) = 16),
    -- The caller's key: asking again with the same key answers with the same operation.
    idempotency_key BLOB UNIQUE CHECK (length(idempotency_key) = 16),
    -- Keyed digest of what was asked, so that one key cannot stand for two requests.
    request BLOB NOT NULL CHECK (length(request) = 16),
    purpose TEXT NOT NULL CHECK (purpose IN ('change', 'heal')),
    state TEXT NOT NULL CHECK (state IN
        ('planned', 'confirm_intent', 'undoing', 'merged', 'rolled_back', 'rollback_partial', 'cancelled')),
    plan TEXT NOT NULL,
    -- The secrets the plan and its undo write, sealed; gone when the operation ends.
    sealed BLOB,
    fencing_token INTEGER NOT NULL,
    planned_ms INTEGER NOT NULL,
    ended_ms INTEGER
) STRICT;

-- At most one operation of a router is open, whatever the callers believe.
CREATE UNIQUE INDEX reconcile_op_open ON reconcile_op ((1)) WHERE state IN ('planned', 'confirm_intent', 'undoing');

CREATE TABLE reconcile_record (
    op INTEGER NOT NULL REFERENCES reconcile_op (id),
    seq INTEGER NOT NULL,
    format INTEGER NOT NULL,
    record TEXT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (op, seq)
) STRICT, WITHOUT ROWID;
