-- Users, bets and the ledger. Amounts are integer cents, rates integer basis points,
-- times integer Unix milliseconds (UTC).

CREATE TABLE users (
    id TEXT PRIMARY KEY,
    wallet_address TEXT UNIQUE NOT NULL,
    balance INTEGER NOT NULL DEFAULT 0,
    version INTEGER NOT NULL DEFAULT 1,  -- optimistic lock: every change counts it up
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    -- The house is the other side of every entry and the only one that may owe.
    CHECK (balance >= 0 OR id = 'house')
) STRICT;

CREATE TABLE transaction_ledger (
    id TEXT PRIMARY KEY,
    user_id TEXT NOT NULL REFERENCES users (id),
    amount INTEGER NOT NULL,
    balance_after INTEGER NOT NULL,
    ref_type TEXT NOT NULL CHECK (
        ref_type IN ('BET', 'PAYOUT', 'REFUND', 'DEPOSIT', 'WITHDRAWAL', 'ADJUSTMENT')
    ),
    ref_id TEXT NOT NULL,
    metadata TEXT CHECK (metadata IS NULL OR json_valid(metadata)),
    created_at INTEGER NOT NULL,
    CHECK (balance_after >= 0 OR user_id = 'house'),
    UNIQUE (user_id, ref_type, ref_id)
) STRICT;

CREATE INDEX idx_ledger_user_time ON transaction_ledger (user_id, created_at);
CREATE INDEX idx_ledger_ref ON transaction_ledger (ref_type, ref_id);

CREATE TRIGGER ledger_is_append_only_update BEFORE UPDATE ON transaction_ledger
BEGIN
    SELECT RAISE(ABORT, 'the ledger is append-only');
END;

CREATE TRIGGER ledger_is_append_only_delete BEFORE DELETE ON transaction_ledger
BEGIN
    SELECT RAISE(ABORT, 'the ledger is append-only');
END;

CREATE TABLE bets (
    id TEXT PRIMARY KEY,
    user_id TEXT NOT NULL REFERENCES users (id),
    cell_id TEXT NOT NULL,
    amount INTEGER NOT NULL CHECK (amount > 0),
    min_reward_rate_bps INTEGER CHECK (min_reward_rate_bps > 0),
    reward_rate_bps INTEGER CHECK (reward_rate_bps > 0),  -- fixed when confirmed
    status TEXT NOT NULL CHECK (
        status IN ('pending', 'confirmed', 'won', 'lost', 'insufficient_funds', 'void')
    ),
    placed_at INTEGER NOT NULL,
    resolved_at INTEGER,
    payout_amount INTEGER CHECK (payout_amount >= 0)
) STRICT;

CREATE INDEX idx_bets_pending ON bets (user_id, status) WHERE status = 'pending';
CREATE INDEX idx_bets_user ON bets (user_id, placed_at);
CREATE UNIQUE INDEX idx_bets_one_per_cell ON bets (user_id, cell_id)
WHERE status <> 'insufficient_funds';

-- A request that was answered with 202, so that its retry gets the same answer.
CREATE TABLE idempotency_keys (
    user_id TEXT NOT NULL REFERENCES users (id),
    key TEXT NOT NULL,
    request_hash BLOB NOT NULL,  -- SHA-256 of what was asked
    bet_id TEXT NOT NULL REFERENCES bets (id),
    answer TEXT NOT NULL CHECK (json_valid(answer)),
    created_at INTEGER NOT NULL,
    PRIMARY KEY (user_id, key)
) STRICT, WITHOUT ROWID;

-- One row that health checks write, so that they notice a disk that takes no more.
CREATE TABLE write_probe (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    beats INTEGER NOT NULL
) STRICT;

INSERT INTO write_probe (id, beats) VALUES (1, 0);

INSERT INTO users (id, wallet_address, created_at, updated_at)
VALUES ('house', 'house', 0, 0);
