-- Bets that move money. Expand only: a release of schema 1 keeps working, its bets just
-- carry no key here.

-- The retry of a bet finds the bet itself, and so its first answer; `idempotency_keys`
-- is no longer written.
ALTER TABLE bets ADD COLUMN idempotency_key TEXT;

CREATE UNIQUE INDEX idx_bets_key ON bets (user_id, idempotency_key);

-- By cell first: bets of the moment lie together, which makes a batch touch few pages,
-- and a closed column finds its bets.
DROP INDEX idx_bets_one_per_cell;

CREATE UNIQUE INDEX idx_bets_one_per_cell ON bets (cell_id, user_id)
WHERE status <> 'insufficient_funds';

-- Bets and stakes of a user are listed through the ledger's UNIQUE (user_id, ref_type, ref_id),
-- whose references sort by time; these two list what is not in there. An index in the order
-- of users costs every bet a page of its own to write.
DROP INDEX idx_bets_user;

CREATE INDEX idx_bets_user ON bets (user_id, placed_at)
WHERE status = 'insufficient_funds' OR idempotency_key IS NULL;

DROP INDEX idx_ledger_user_time;

CREATE INDEX idx_ledger_user_time ON transaction_ledger (user_id, created_at)
WHERE ref_type <> 'BET';

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
