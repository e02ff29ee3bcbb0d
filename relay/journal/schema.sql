-- A log's store, format 5. One connection, WAL, synchronous=FULL, locking_mode=EXCLUSIVE (DESIGN.md, rule 9).
-- `sealed` columns are sealed values (relay/journal/seal.py); hashes are over the plaintext. A `checksum` at the end of
-- a row is over the rest of it (relay/journal/queries.py). Beside it lies the mark (relay/journal/mark.py).

CREATE TABLE meta (
    only       INTEGER PRIMARY KEY CHECK (only = 1),
    federation BLOB NOT NULL,
    cell       TEXT NOT NULL,
    log_id     BLOB NOT NULL,
    store      BLOB NOT NULL,     -- this very store's id
    key_check  BLOB NOT NULL,     -- a sealed value that opens only with a key of this store's ring
    first      INTEGER NOT NULL,  -- index of the oldest block that is kept
    prev       BLOB NOT NULL,     -- hash of block first - 1
    prev_term  INTEGER NOT NULL,  -- its term
    time       INTEGER NOT NULL,  -- its time, Unix ms
    members    BLOB NOT NULL,     -- the cell's members as of it, or later; empty in a cell of one
    checksum   BLOB NOT NULL
);

CREATE TABLE state (              -- changes with every write of the log
    only      INTEGER PRIMARY KEY CHECK (only = 1),
    seq       INTEGER NOT NULL,   -- writes so far: the mark has the same number
    term      INTEGER NOT NULL,
    vote      BLOB NOT NULL,      -- the store voted for in this term, or empty
    committed INTEGER NOT NULL,   -- a block that is known to be committed
    known     BLOB NOT NULL,      -- [store, highest index it was seen to acknowledge] of every store, packed
    checksum  BLOB NOT NULL
);

CREATE TABLE block (
    idx    INTEGER PRIMARY KEY,
    term   INTEGER NOT NULL,
    prev   BLOB NOT NULL,
    time   INTEGER NOT NULL,      -- Unix ms
    hash   BLOB NOT NULL,
    sealed BLOB NOT NULL          -- all records of the block: one row, one commit
);

CREATE TABLE staged_block (       -- blocks of a snapshot that is being fetched
    idx    INTEGER PRIMARY KEY,
    term   INTEGER NOT NULL,
    prev   BLOB NOT NULL,
    time   INTEGER NOT NULL,
    hash   BLOB NOT NULL,
    sealed BLOB NOT NULL
);

CREATE TABLE checkpoint (         -- the current checkpoint; none before the first
    only       INTEGER PRIMARY KEY CHECK (only = 1),
    generation INTEGER NOT NULL,
    idx        INTEGER NOT NULL,  -- the block after which it was taken
    count      INTEGER NOT NULL,  -- of its rows
    checksum   BLOB NOT NULL      -- over all of its rows
);

CREATE TABLE checkpoint_row (     -- rows of another generation: an unfinished checkpoint, an older one that is read still, or
    generation INTEGER NOT NULL,  -- what a newer one has, too
    ordinal    INTEGER NOT NULL,
    lies       INTEGER NOT NULL,  -- where its bytes lie: the generation that wrote them, mostly this one,
    lies_at    INTEGER NOT NULL,  -- and as which row of that
    sealed     BLOB NOT NULL,     -- empty where they lie elsewhere
    PRIMARY KEY (generation, ordinal)
);

CREATE TABLE fact (               -- what the residency check knows (relay.ports.Residency): of each key the newest
    key    BLOB NOT NULL,         -- version, and older ones as long as the block of a newer one is kept
    idx    INTEGER NOT NULL,      -- the block that taught it
    sealed BLOB NOT NULL,
    PRIMARY KEY (key, idx)
);

CREATE INDEX fact_by_block ON fact (idx);
