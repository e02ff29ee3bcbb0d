-- The local store of one device. Times in Unix ms; keys, ids and content as raw bytes.
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;

-- who we and the others are; which of our keys count, the newest of our records says
CREATE TABLE user_keys (seed BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE device_keys (
    id BLOB PRIMARY KEY, seed BLOB NOT NULL,
    private BLOB NOT NULL,  -- empty once nothing can come any more that was sealed for a key that was rotated
    until INTEGER NOT NULL);  -- then; 0 while the key counts
CREATE TABLE chain (version INTEGER PRIMARY KEY, signed BLOB NOT NULL);  -- our own home records, all of them
CREATE TABLE records (  -- the newest verified, our own included
    user BLOB PRIMARY KEY, version INTEGER NOT NULL, signed BLOB NOT NULL,
    former BLOB NOT NULL);  -- the device ids that the versions before listed and it does not

-- what goes out: a send has letters (one per counter), a letter has parcels (one envelope each)
CREATE TABLE counters (conversation BLOB PRIMARY KEY, next INTEGER NOT NULL);
CREATE TABLE firsts (conversation BLOB, device BLOB, first INTEGER NOT NULL, PRIMARY KEY (conversation, device));
CREATE TABLE sends (sid INTEGER PRIMARY KEY AUTOINCREMENT, control INTEGER NOT NULL);
CREATE TABLE letters (
    mid INTEGER PRIMARY KEY AUTOINCREMENT, sid INTEGER NOT NULL, conversation BLOB NOT NULL, counter INTEGER NOT NULL,
    kind INTEGER NOT NULL, sent_ms INTEGER NOT NULL, expires INTEGER NOT NULL,
    first INTEGER NOT NULL,  -- a sender key's letter: where the group stream begins for who gets it
    content BLOB NOT NULL,
    news INTEGER NOT NULL DEFAULT 0);  -- what is told to many, of which this letter carries a part; 0: content has it
CREATE INDEX letters_sid ON letters (sid);
CREATE INDEX letters_conversation ON letters (conversation, counter);
CREATE INDEX letters_news ON letters (news) WHERE news>0;
CREATE TABLE news (nid INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE parcels (
    pid INTEGER PRIMARY KEY AUTOINCREMENT, sid INTEGER NOT NULL, mid INTEGER NOT NULL,
    what INTEGER NOT NULL,  -- 0 mailbox, 1 roster, 2 publication of a roster
    own INTEGER NOT NULL,  -- 1: the copy for our own other devices
    address BLOB NOT NULL, hint TEXT NOT NULL,
    version INTEGER NOT NULL,  -- of the home record or roster it was sealed for
    newest INTEGER NOT NULL DEFAULT 0,  -- a newer one that a receipt spoke of
    only BLOB NOT NULL,  -- device ids that it is meant for, joined; empty: all
    devices BLOB NOT NULL DEFAULT x'',  -- device ids that it was sealed for, joined
    id BLOB, envelope BLOB,
    state INTEGER NOT NULL DEFAULT 0,  -- 0 queued, 1 sent, 2 accepted, 3 stored, 4 refused
    code INTEGER NOT NULL DEFAULT 0, retry_at INTEGER NOT NULL DEFAULT 0,
    tries INTEGER NOT NULL DEFAULT 0, stales INTEGER NOT NULL DEFAULT 0,  -- retryable and STALE answers
    carrier INTEGER NOT NULL DEFAULT 0);  -- the process that sent it
CREATE INDEX parcels_id ON parcels (id);
CREATE INDEX parcels_sid ON parcels (sid);
CREATE INDEX parcels_mid ON parcels (mid);
CREATE INDEX parcels_state ON parcels (state, pid);
CREATE INDEX parcels_address ON parcels (address);
CREATE TABLE failures (sid INTEGER PRIMARY KEY, code INTEGER NOT NULL, text TEXT NOT NULL, at INTEGER NOT NULL);

-- signed receipts. The sends that want some, and of which outcome:
CREATE TABLE proving (sid INTEGER PRIMARY KEY, level INTEGER NOT NULL);
CREATE TABLE receipts (
    id BLOB PRIMARY KEY, sid INTEGER NOT NULL, cell TEXT NOT NULL, position INTEGER NOT NULL,
    level INTEGER NOT NULL,  -- the outcome that it is about: 1 accepted, 2 stored
    code INTEGER NOT NULL DEFAULT 0,  -- why there is none
    tries INTEGER NOT NULL DEFAULT 0, retry_at INTEGER NOT NULL DEFAULT 0,
    receipt BLOB);
CREATE INDEX receipts_sid ON receipts (sid);
CREATE INDEX receipts_open ON receipts (retry_at) WHERE receipt IS NULL AND code=0;

-- what came in; an author is a user id and the stem of a device, joined
CREATE TABLE streams (
    author BLOB, conversation BLOB, next INTEGER NOT NULL, given INTEGER NOT NULL, missing BLOB NOT NULL,
    owed INTEGER NOT NULL,  -- counters missing before the next message that the app gets
    PRIMARY KEY (author, conversation));
CREATE TABLE held (
    author BLOB, conversation BLOB, counter INTEGER, since INTEGER NOT NULL, size INTEGER NOT NULL,
    item BLOB NOT NULL, PRIMARY KEY (author, conversation, counter));
CREATE INDEX held_since ON held (since);
CREATE TABLE partial (
    author BLOB, conversation BLOB, first INTEGER, part INTEGER, at INTEGER NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (author, conversation, first, part));
CREATE TABLE waiting (  -- envelopes that cannot be opened or believed yet, as they came
    wid INTEGER PRIMARY KEY AUTOINCREMENT, id BLOB UNIQUE, cause BLOB NOT NULL, hint TEXT NOT NULL,
    expires INTEGER NOT NULL, envelope BLOB NOT NULL);
CREATE INDEX waiting_cause ON waiting (cause);
CREATE TABLE inbox (seq INTEGER PRIMARY KEY AUTOINCREMENT, head BLOB NOT NULL, content BLOB NOT NULL);

-- groups
CREATE TABLE groups (
    id BLOB PRIMARY KEY, version INTEGER NOT NULL, news BLOB NOT NULL,  -- the verified roster, whole
    pending BLOB NOT NULL DEFAULT x'');  -- our own next roster, until the relay took it
CREATE TABLE members (grp BLOB, user BLOB, cell TEXT NOT NULL, since INTEGER NOT NULL, PRIMARY KEY (grp, user));
CREATE TABLE sender_keys (
    kid BLOB, device BLOB, user BLOB NOT NULL, grp BLOB NOT NULL, version INTEGER NOT NULL, key BLOB NOT NULL,
    stale INTEGER NOT NULL DEFAULT 0,  -- ours, and a device that has it was revoked: draw another one
    PRIMARY KEY (kid, device));
CREATE INDEX sender_keys_group ON sender_keys (grp, device, version);
