-- A log's store, format 2. One connection, WAL, synchronous=FULL, locking_mode=EXCLUSIVE (DESIGN.md, rule 9).
-- `sealed` columns are sealed values (relay/journal/seal.py); hashes are over the plaintext.

CREATE TABLE meta (
    only       INTEGER PRIMARY KEY CHECK (only = 1),
    federation BLOB NOT NULL,
    cell       TEXT NOT NULL,
    log_id     BLOB NOT NULL,
    key_check  BLOB NOT NULL,     -- a sealed value that opens only with a key of this store's ring
    first      INTEGER NOT NULL,  -- index of the oldest block that is kept
    prev       BLOB NOT NULL,     -- hash of block first - 1
    time       INTEGER NOT NULL   -- time of block first - 1, Unix ms
);

CREATE TABLE block (
    idx    INTEGER PRIMARY KEY,
    prev   BLOB NOT NULL,
    time   INTEGER NOT NULL,      -- Unix ms
    hash   BLOB NOT NULL,
    sealed BLOB NOT NULL          -- all records of the block: one row, one commit
);

CREATE TABLE checkpoint (         -- the current checkpoint; none before the first
    only       INTEGER PRIMARY KEY CHECK (only = 1),
    generation INTEGER NOT NULL,
    idx        INTEGER NOT NULL,  -- the block after which it was taken
    count      INTEGER NOT NULL,  -- of its rows
    checksum   BLOB NOT NULL      -- over all of its rows
);

CREATE TABLE checkpoint_row (     -- rows of another generation are an unfinished checkpoint
    generation INTEGER NOT NULL,
    ordinal    INTEGER NOT NULL,
    sealed     BLOB NOT NULL,
    PRIMARY KEY (generation, ordinal)
);

CREATE TABLE fact (               -- what the residency check knows (relay.ports.Residency)
    key    BLOB PRIMARY KEY,
    sealed BLOB NOT NULL
);
