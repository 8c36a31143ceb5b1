-- Confirmation and settlement. Expand only: a release of schema 2 keeps placing bets.

-- What rates were computed from: the bar whose close was the price, and the estimate after it.
CREATE TABLE pricings (
    bar INTEGER PRIMARY KEY CHECK (bar % 100 = 0),  -- its stamp, Unix ms
    price INTEGER NOT NULL CHECK (price > 0),  -- cents
    sigma REAL NOT NULL CHECK (sigma > 0),  -- per square root of a second
    spread REAL NOT NULL CHECK (spread >= 0),  -- standard deviation of its logarithm
    speed_bump_ms INTEGER NOT NULL,
    rate_model TEXT NOT NULL,
    volatility_model TEXT NOT NULL
) STRICT;

ALTER TABLE bets ADD COLUMN pricing INTEGER REFERENCES pricings (bar);

ALTER TABLE bets ADD COLUMN void_reason TEXT CHECK (
    void_reason IS NULL
    OR void_reason IN ('no_price', 'rate_below_minimum', 'not_offered', 'feed_outage')
);

-- Whether it was refused for lack of money. Unlike the status it never changes, so a bet that is
-- confirmed or settled stays where it is in the index of cells. (To a release of schema 2, which
-- does not write it, a refused bet occupies its cell for that trader.)
ALTER TABLE bets ADD COLUMN refused INTEGER NOT NULL DEFAULT 0 CHECK (refused IN (0, 1));

UPDATE bets SET refused = 1 WHERE status = 'insufficient_funds';

DROP INDEX idx_bets_one_per_cell;

CREATE UNIQUE INDEX idx_bets_one_per_cell ON bets (cell_id, user_id) WHERE refused = 0;

-- What the house may have to pay for a bet at the rate that was offered, cents: what is
-- limited besides the stakes.
ALTER TABLE bets ADD COLUMN liability INTEGER NOT NULL DEFAULT 0 CHECK (liability >= 0);

ALTER TABLE users ADD COLUMN open_liability INTEGER NOT NULL DEFAULT 0 CHECK (open_liability >= 0);

ALTER TABLE exposures ADD COLUMN liability INTEGER NOT NULL DEFAULT 0 CHECK (liability >= 0);

-- What the bets of a closed column were decided by.
CREATE TABLE settlements (
    start INTEGER NOT NULL,  -- Unix seconds
    width INTEGER NOT NULL,  -- seconds
    bars INTEGER NOT NULL,  -- how many there are in the window
    longest_gap INTEGER NOT NULL,  -- longest time without a bar in it, ms
    low INTEGER,  -- the lowest and highest price of all its bars, cents; NULL when there is none
    high INTEGER,
    void INTEGER NOT NULL CHECK (void IN (0, 1)),
    settled_at INTEGER NOT NULL,  -- Unix ms
    -- Settled bets of a column count as open for their users' limits until they are released,
    -- user by user: the last one who was; NULL once all were.
    released TEXT DEFAULT '',
    PRIMARY KEY (start, width)
) STRICT, WITHOUT ROWID;

-- Who may settle; a higher token than one's own means that somebody else took over.
CREATE TABLE leases (
    name TEXT PRIMARY KEY,
    holder TEXT NOT NULL,
    token INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
