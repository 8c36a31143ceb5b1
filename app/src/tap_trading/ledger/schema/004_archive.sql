-- Weeks that were moved to archives, files of their own with this same schema. Expand only: a
-- release of schema 3 goes on, but its audit and its lists know only what was not moved.

-- Where the books begin. Rows up to these two, but for bets that are open or carried, are in an
-- archive and no longer part of the books; they may still be there until they are deleted. In an
-- archive: where it begins.
CREATE TABLE horizon (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    week TEXT NOT NULL,  -- the last one that was moved, such as 2026_w47; '' for none
    bets INTEGER NOT NULL,  -- the last row of bets in it
    entries INTEGER NOT NULL  -- the last row of transaction_ledger in it
) STRICT;

INSERT INTO horizon (id, week, bets, entries) VALUES (1, '', 0, 0);

-- What each account had when a week ended, cents. The books begin with those of the horizon's.
CREATE TABLE opening_balances (
    week TEXT NOT NULL,
    user_id TEXT NOT NULL REFERENCES users (id),
    balance INTEGER NOT NULL,
    PRIMARY KEY (week, user_id)
) STRICT, WITHOUT ROWID;

-- Bets that were not over when a week ended, while their stakes' entries are in its archive or
-- in one before. Of the horizon's week: bets whose stakes are not in these books.
CREATE TABLE carried_bets (
    week TEXT NOT NULL,
    bet_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    amount INTEGER NOT NULL,  -- of the entry of its stake, cents
    PRIMARY KEY (week, bet_id)
) STRICT, WITHOUT ROWID;

-- References of movements that are in archives: none of them may be used again. (Those of bets
-- are unique without it.)
CREATE TABLE archived_references (
    ref_type TEXT NOT NULL,
    ref_id TEXT NOT NULL,
    PRIMARY KEY (ref_type, ref_id)
) STRICT, WITHOUT ROWID;

-- Every archive that was ever made.
CREATE TABLE archives (
    week TEXT PRIMARY KEY,
    begins_at INTEGER NOT NULL,  -- Unix ms
    ends_at INTEGER NOT NULL,  -- Unix ms
    bets INTEGER NOT NULL,
    entries INTEGER NOT NULL,
    size INTEGER NOT NULL,  -- bytes
    sha256 TEXT NOT NULL,  -- of the file
    archived_at INTEGER NOT NULL,  -- Unix ms
    stored_at INTEGER,  -- when its copy in cold storage was verified, Unix ms
    is_local INTEGER NOT NULL DEFAULT 1 CHECK (is_local IN (0, 1))
) STRICT, WITHOUT ROWID;

CREATE VIEW present_entries AS
SELECT rowid AS number, *
FROM transaction_ledger
WHERE rowid > (SELECT entries FROM horizon);

CREATE VIEW present_bets AS
SELECT rowid AS number, *
FROM bets
WHERE rowid > (SELECT bets FROM horizon)
    OR status IN ('pending', 'confirmed')
    OR EXISTS (
        SELECT 1 FROM carried_bets c
        WHERE c.week = (SELECT week FROM horizon) AND c.bet_id = bets.id
    );

-- Only what is in an archive may go.
DROP TRIGGER ledger_is_append_only_delete;

CREATE TRIGGER ledger_is_append_only_delete BEFORE DELETE ON transaction_ledger
WHEN old.rowid > (SELECT entries FROM horizon)
BEGIN
    SELECT RAISE(ABORT, 'the ledger is append-only');
END;
