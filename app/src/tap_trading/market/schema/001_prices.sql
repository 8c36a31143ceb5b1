-- The index, bar by bar. Prices are integer cents, times integer Unix milliseconds (UTC).

-- A bar stamped t covers [t, t + 100). One that is missing was without a usable price.
CREATE TABLE bars (
    t INTEGER PRIMARY KEY CHECK (t % 100 = 0),
    open INTEGER NOT NULL CHECK (open > 0),
    high INTEGER NOT NULL,
    low INTEGER NOT NULL CHECK (low > 0),
    close INTEGER NOT NULL CHECK (close > 0),
    -- The volatility after this bar, per square root of a second, and the standard deviation
    -- of its logarithm; NULL while too little has been seen to offer rates.
    sigma REAL CHECK (sigma > 0),
    spread REAL CHECK (spread >= 0),
    volatility_model TEXT NOT NULL,
    -- What the estimate carries to the next bar: the model's state after time and close, as JSON.
    estimate TEXT NOT NULL CHECK (json_valid(estimate)),
    CHECK ((sigma IS NULL) = (spread IS NULL)),
    CHECK (low <= min(open, close) AND high >= max(open, close))
) STRICT;

-- Every bar stamped before `bars_until` is final: no more will be written there.
CREATE TABLE progress (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    bars_until INTEGER NOT NULL
) STRICT;

INSERT INTO progress (id, bars_until) VALUES (1, 0);

CREATE TRIGGER bars_before_the_progress_are_final BEFORE INSERT ON bars
WHEN NEW.t < (SELECT bars_until FROM progress)
BEGIN
    SELECT RAISE(ABORT, 'bars of this time are final');
END;

CREATE TRIGGER bars_never_change BEFORE UPDATE ON bars
BEGIN
    SELECT RAISE(ABORT, 'bars never change');
END;

-- The step of a column's rows, chosen when it was first offered and fixed from then on.
CREATE TABLE offered_columns (
    start INTEGER NOT NULL,  -- Unix seconds
    width INTEGER NOT NULL CHECK (width > 0),  -- seconds
    step INTEGER NOT NULL CHECK (step > 0),  -- cents
    offered_at INTEGER NOT NULL,
    PRIMARY KEY (start, width)
) STRICT, WITHOUT ROWID;

-- What ops did to the market by hand, newest last. Suspended until the last one says otherwise.
CREATE TABLE overrides (
    id INTEGER PRIMARY KEY,
    action TEXT NOT NULL CHECK (action IN ('suspend', 'release')),
    reason TEXT NOT NULL CHECK (reason <> ''),
    operator TEXT NOT NULL CHECK (operator <> ''),
    created_at INTEGER NOT NULL
) STRICT;

CREATE TRIGGER overrides_are_append_only_update BEFORE UPDATE ON overrides
BEGIN
    SELECT RAISE(ABORT, 'overrides are append-only');
END;

CREATE TRIGGER overrides_are_append_only_delete BEFORE DELETE ON overrides
BEGIN
    SELECT RAISE(ABORT, 'overrides are append-only');
END;

-- What the index has to remember over a restart, as JSON.
CREATE TABLE index_memory (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    saved_at INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (json_valid(state))
) STRICT;

-- Who may write; a higher token than one's own means that somebody else took over.
CREATE TABLE leases (
    name TEXT PRIMARY KEY,
    holder TEXT NOT NULL,
    token INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
