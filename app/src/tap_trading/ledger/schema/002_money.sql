-- Bets that move money. Expand only: a release of schema 1 keeps working, its bets just
-- carry no key here.

-- The retry of a bet finds the bet itself, and so its first answer; `idempotency_keys`
-- is no longer written.
ALTER TABLE bets ADD COLUMN idempotency_key TEXT;

-- Also lists the bets of a user, in the order of their rows. An index by user and time besides
-- it would cost every bet another page to write.
DROP INDEX idx_bets_user;

CREATE UNIQUE INDEX idx_bets_user ON bets (user_id, idempotency_key);

-- By cell first: bets of the moment lie together, which makes a batch touch few pages,
-- and a closed column finds its bets.
DROP INDEX idx_bets_one_per_cell;

CREATE UNIQUE INDEX idx_bets_one_per_cell ON bets (cell_id, user_id)
WHERE status <> 'insufficient_funds';

-- In the order in which they wait.
DROP INDEX idx_bets_pending;

CREATE INDEX idx_bets_pending ON bets (placed_at) WHERE status = 'pending';

-- Stakes of a user's bets that are not settled yet, cents.
ALTER TABLE users ADD COLUMN open_stake INTEGER NOT NULL DEFAULT 0 CHECK (open_stake >= 0);

-- Stakes taken on one cell or one column, cents, for the limits on them. A scope is a
-- cell's id without its symbol or the first two numbers of it, so that scopes sort by time.
CREATE TABLE exposures (
    scope TEXT PRIMARY KEY,
    stake INTEGER NOT NULL CHECK (stake >= 0)
) STRICT, WITHOUT ROWID;

-- The same table, whose references are unique in another order of the same columns: stakes are
-- written at the end of the index instead of on a page for each user.
ALTER TABLE transaction_ledger RENAME TO ledger_of_schema_1;

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
    CHECK (balance_after >= 0 OR user_id = 'house')
) STRICT;

INSERT INTO transaction_ledger SELECT * FROM ledger_of_schema_1 ORDER BY rowid;

DROP TABLE ledger_of_schema_1;

CREATE UNIQUE INDEX idx_ledger_ref ON transaction_ledger (ref_type, ref_id, user_id);

-- Stakes are found by their bets.
CREATE INDEX idx_ledger_user_time ON transaction_ledger (user_id, created_at)
WHERE ref_type <> 'BET';

CREATE TRIGGER ledger_is_append_only_update BEFORE UPDATE ON transaction_ledger
BEGIN
    SELECT RAISE(ABORT, 'the ledger is append-only');
END;

CREATE TRIGGER ledger_is_append_only_delete BEFORE DELETE ON transaction_ledger
BEGIN
    SELECT RAISE(ABORT, 'the ledger is append-only');
END;
