"""Every bound, with its unit and its reason. Operators may tighten some in the config; nobody may remove one."""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
SECOND: Final = 1_000  # ms
MINUTE: Final = 60 * SECOND
DAY: Final = 24 * 60 * MINUTE

# --- envelopes -----------------------------------------------------------------------------------
MAX_ENVELOPE: Final = 128 * KIB  # bytes; a chunk of 96 KiB, its wraps for 100 devices and padding fit
CHUNK: Final = 96 * KIB  # bytes of content per envelope; larger messages travel as several envelopes
MAX_LIFETIME: Final = 30 * DAY  # ms between created and expires; a queue must not keep what nobody will collect
DEFAULT_LIFETIME: Final = 14 * DAY  # ms; what the SDK asks for
ADMISSION_WINDOW: Final = 10 * MINUTE  # ms (D in rule 15); ids are remembered this long past `created`
MAX_CLOCK_AHEAD: Final = 1 * MINUTE  # ms a `created` may lie in the future (rule 15)

# --- frames --------------------------------------------------------------------------------------
MAX_FRAME: Final = 1 * MIB  # bytes of one WebSocket message, checked before it is decoded
MAX_BATCH: Final = 256  # envelopes in one SUBMIT, hand-overs in one HANDOVER; bounds decode time per frame
MAX_STRING: Final = 256  # characters of any string on the wire
MAX_ARRAY: Final = 10_000  # elements of any array on the wire
MAX_LINK_FRAME: Final = 5 * MIB  # bytes of one frame between nodes; a full block fits, with what is around its records
MAX_NOTE: Final = MAX_LINK_FRAME - 1 * KIB  # bytes that one note between the stores of a cell carries
MAX_HANDOVER: Final = 1 * MIB  # bytes of envelopes in one hand-over batch, so that one answer never waits long
HANDOVERS_AHEAD: Final = 4  # batches to one cell without an answer, about MAX_HANDOVER bytes in all (ADR 37, 40)

# --- blocks --------------------------------------------------------------------------------------
MAX_BLOCK: Final = 4 * MIB  # bytes of records in one block; bounds one commit and one replication message
MAX_BLOCK_RECORDS: Final = 4_096  # records in one block; below 2**SLOT_BITS with room for virtual slots
SLOT_BITS: Final = 20  # a position is index << SLOT_BITS | slot, one signed 64-bit integer
MAX_INTAKE: Final = 16 * MIB  # bytes waiting for the journal; past it submitters are told to retry
OFFER_BYTES: Final = 512  # bytes counted for each offer to the intake beside its records: what Python keeps of it
INTAKE_AHEAD: Final = 8  # batches of a node that have a place in the log and are not committed; more would only wait
INTAKE_AHEAD_BUSY: Final = 1  # while the processors are what a batch waits for: it grows until the last is done
INTAKE_EVERY_S: Final = 0.01  # seconds from batch to batch at least, while a node is busy (ADR 39), and no less than
INTAKE_ROUNDS: Final = 2.5  # a commit and so many rounds of the fan-out take,
INTAKE_EVERY_MOST_S: Final = 0.1  # up to this
CHECKPOINT_BYTES: Final = 8 * MIB  # log bytes between two checkpoints at least; bounds replay at start
CHECKPOINT_SHARE: Final = 4  # the log grows by a 4th of what a checkpoint takes: bounds replay, and what dumps cost
CHECKPOINT_AHEAD: Final = 256 * MIB  # bytes of rows on the shelf, made and not written: the fold goes on once all are
CARRY_LIVE_SHARE: Final = 0.25  # carry the oldest stretch when less than this share of it is still live
CARRY_STRETCH: Final = 4 * MIB  # bytes of the oldest stretch that one carry looks at
ERASE_S: Final = 300.0  # seconds from when all of a user who left is handed over to when the log lets go of it
CARRY_BATCH: Final = 64 * KIB  # bytes of records in one CARRY; reading one of them decodes them all
HOME_CLOCK_AHEAD: Final = 5 * MINUTE  # ms a home record's `not_before` may lie in the future: the user's clock made it
MAX_CLOCK_JUMP: Final = 1 * MINUTE  # ms the wall clock may depart from the monotonic one (rule 14)

# --- the store -----------------------------------------------------------------------------------
MAX_CHECKPOINT_ROW: Final = 1 * MIB  # bytes of one checkpoint row; rows are written and read one batch at a time
RECENT_BLOCKS: Final = 16 * MIB  # bytes of the newest blocks kept in memory: followers and replay do not read the disk
READ_BATCH: Final = 1 * MIB  # bytes of blocks that one read of the disk fetches ahead for a follower
WAL_BYTES: Final = 4 * MIB  # bytes written to SQLite's write-ahead log before it is folded into the database file
SCRUB_RATE: Final = 1 * MIB  # bytes a second that the scrubber reads: below 1 % of a core, little of a slow disk
SCRUB_BATCH: Final = 16  # blocks that it reads at a time; a reader that comes then waits no longer than for another one
SCRUB_BLOCK: Final = 4 * KIB  # bytes that each block counts for at least: opening many small ones takes time, too,
SCRUB_RECORD: Final = 512  # and bytes that each record counts for beside its own, for the same reason
SCRUB_FIRST_S: Final = 60.0  # seconds after a start, and between two passes at least
SCRUB_EVERY_S: Final = 3_600.0  # seconds from pass to pass: what rots is found while the other copies are still good
SHELF_BYTES: Final = 32 * MIB  # bytes in memory of what lies in the scratch file: that of 25,000 users
DISK_DEADLINE_S: Final = 30.0  # seconds one database call may take; a disk that hangs longer has failed (rule 7)

# --- per user ------------------------------------------------------------------------------------
MAX_DEVICES: Final = 32  # devices in one home record; a wrap is about 100 bytes in every envelope
MAX_FORMER: Final = 256  # device ids of a user that were revoked or rotated: who verifies keeps them, 72 bytes each
MAX_CHAIN: Final = 256  # home records in one chain
MAX_MEMBERS: Final = 10_000  # members of a roster in this first form
MAX_AWAKE: Final = 3 * MAX_MEMBERS // 2  # users, and devices, kept as objects for nothing (39 MB): a whole group
MAX_MAILBOX: Final = 64 * MIB  # bytes waiting in one mailbox; past it MAILBOX_FULL, a final outcome
MAX_OUTBOX: Final = 1_024 * MIB  # bytes waiting for one other cell; past it OUTBOX_FULL, retryable
MAX_WAITING: Final = 16 * MIB  # bytes waiting for a roster version that has not arrived (rule 17)
MAX_WAITING_EACH: Final = 1 * MIB  # the same of one device: nobody fills it for all
PARKED_RETRY: Final = 1 * SECOND  # ms until a group envelope that came before its roster version is tried again
PARKED_RETRY_MAX: Final = 1 * MINUTE  # ms; each try waits twice as long, up to this
MAX_NOTICES: Final = 65_536  # unacknowledged outcomes of one device; past it OUTBOX_FULL until it collects them
MAX_UNCONFIRMED: Final = 4_096  # outcomes kept for another cell that it has not confirmed; 16 hand-over batches
MAX_STAYS: Final = 4 * MAX_MEMBERS  # members of a roster and stays that ended while mail from their time waits

# --- broadcast channels --------------------------------------------------------------------------
MAX_CHANNELS: Final = 4_096  # channels of one cell; 2 KiB each with its terms
MAX_CHANNELS_EACH: Final = 16  # channels of one user
MAX_CHANNEL_BYTES: Final = 64 * MIB  # bytes that all channels of one user keep: what a mailbox may hold
MAX_CHANNEL_POSTS: Final = 65_536  # posts that they keep; 64 bytes of memory each, and as many go in one block at most
MAX_SUBSCRIPTIONS: Final = 64  # channels that one connection has subscribed to
CHANNEL_PAGE: Final = 64 * KIB  # bytes of posts in one answer to a reader; one post at least
CHANNEL_PAGES: Final = 8 * MIB  # bytes of such answers kept: many who come back at one time ask for the same
CHANNEL_READS: Final = 8  # answers that are read from the journal at a time; past it readers take turns
CHANNEL_PAGE_POSTS: Final = 256  # posts in one answer: bounds what one reader holds up
CHANNEL_BEHIND_S: Final = 1.0  # seconds between two tries to tell whoever missed a post that there is one
CHANNEL_BYTES_LEAST: Final = 256 * KIB  # bytes that a channel keeps at least: any post fits
MAX_FAR_CHANNELS: Final = 256  # channels of other cells that readers of one node read; 4 KiB each
FAR_POLL_S: Final = 1.0  # seconds between two questions of a node for news of one such channel, whoever reads it live
FAR_FRESH_S: Final = 5.0  # seconds that a page is given to others without asking: policies and halts count by then
FAR_ASK_S: Final = 5.0  # seconds for another cell to answer; below what a client waits for (30 s)
FAR_ASKS: Final = 4  # questions to one other cell at a time: mail on the same link keeps its room
FAR_REST_S: Final = 2.0  # seconds that a cell is not asked again after it gave no answer; readers are told so at once

# --- root documents ------------------------------------------------------------------------------
MAX_BUNDLE: Final = 8 * MIB  # bytes; 256 regions with statements of 30 KiB
ROOT_PART: Final = 64 * KIB  # bytes of a root document in one answer to a client: one for what a few regions sign
MAX_ROOT_PARTS: Final = 1_024  # such answers on one connection, 8 of the largest documents; "no newer one" counts not

# --- receipts ------------------------------------------------------------------------------------
MAX_RECEIPT: Final = 32 * KIB  # bytes of a receipt; nine nodes with large certificates fit
MAX_CERTIFICATE: Final = 2 * KIB  # bytes of a node's certificate (DER) in a receipt; ours have about 600
MAX_OUTCOME_PATH: Final = 7 * 7 * 32  # bytes from a leaf to a block's root: of as many leaves as it has slots
BOOK_BYTES: Final = 16 * MIB  # bytes of what newest blocks took, for receipts that are asked for: 200,000 envelopes
BOOK_LEAVES: Final = 16_384  # leaves of hashed blocks kept; 8 MiB
MAX_STATEMENTS: Final = 1_024  # blocks whose signatures are kept; under 2 KiB each in a cell of three
SIGNED_TOGETHER: Final = 8  # blocks under one signature of a node; each adds 32 bytes to the receipts of the others
MAX_WANTED: Final = 512  # envelopes in one question for receipts; bounds the answer, with the longest ways, to 640 KiB
PROVE_BLOCKS: Final = 64  # blocks that one node of a cell asks another one's signatures for at a time
PROVE_S: Final = 10.0  # seconds until a client is told that too few nodes signed: within its patience
ATTEST_S: Final = 1.5  # seconds for another node of the cell to sign; then others are asked
ATTEST_REST: Final = 16  # times the time that collecting signatures took, until more are collected: they go together,
ATTEST_REST_S: Final = 0.1  # at most this many seconds

# --- the SDK's store -----------------------------------------------------------------------------
MAX_STRAY_KEYS: Final = 16_384  # sender keys of non-members; a whole group may write before its roster comes
MAX_STRAY_KEYS_EACH: Final = 1_024  # the same of one user: no stranger pushes out what others said

# --- connections ---------------------------------------------------------------------------------
MAX_CONNECTIONS: Final = 20_000  # client connections of one node; an idle one takes 24 KiB: 470 MiB, and a node's rest
HANDSHAKE_S: Final = 10.0  # seconds from accept to WELCOME; a silent socket must not hold a slot
IDLE_S: Final = 120.0  # seconds without a byte before a client is let go; the SDK pings every 30 s
LINGER_S: Final = 2.0  # seconds a client gets to read the last words before its socket is closed
MAX_LOOKUPS: Final = 8  # lookups of one connection in flight; past it the connection reads no further
DRAIN_SPREAD_MS: Final = 5  # ms of reconnect spread per client of a stopping node: 200 reconnects a second
OUTBOX_BYTES: Final = 1 * MIB  # bytes queued for one socket; past it the session is demoted to catch-up
OUTBOXES_BYTES: Final = 256 * MIB  # bytes queued for all sockets of a node; past it a socket that takes none is given
OUTBOX_LEAST: Final = 64 * KIB  # no more than this: who does not read is demoted sooner, and nobody else notices
ACK_EVERY: Final = 4_096  # deliveries after which a client acks
ACK_BYTES: Final = 1 * MIB  # bytes of deliveries after which our client acks, well below UNACKED_BYTES
ACK_MS: Final = 1_000  # ms after which a client acks what it has; every ack is a record of the log
ACK_EACH_MS: Final = 64  # ms of a new session's pace for each session of the node, where that is more than ACK_MS
ACK_MOST_MS: Final = 8_000  # ms, but no longer than this: so much may come again after a crash
RECENT_FRAMES: Final = 8 * MIB  # bytes of encoded deliveries kept for devices that catch up at the same time
UNACKED_BYTES: Final = 8 * MIB  # bytes sent and not acked on one connection; past it delivery waits for an ack
FANOUT_REST: Final = 2.0  # a round of the fan-out rests so many times as long as it took; what comes shares a write
FANOUT_REST_S: Final = 0.05  # seconds, but no longer than this: part of the latency under load
FANOUT_REST_BUSY: Final = 12.0  # while the node is busy: the same two for then
FANOUT_REST_BUSY_S: Final = 0.008
BUSY_S: Final = 0.0002  # seconds that a node's loop wakes late, on average, beside a timer's tick: it is busy (ADR 39)
FANOUT_PIECE: Final = 256 * KIB  # bytes of frames joined for one write, below OUTBOX_BYTES
FANOUT_BYTES: Final = 16 * MIB  # bytes filed and not yet given to all; past it those who lack it read from the journal
PASS_S: Final = 8.0  # seconds for another cell to take what may not wait here; a connection is held up meanwhile
LINK_DEADLINE_S: Final = 30.0  # seconds a link waits for an answer before it reconnects
DRAIN_S: Final = 10.0  # seconds a stopping node gives its clients

# --- links between nodes -------------------------------------------------------------------------
MAX_LINKS: Final = 256  # inbound links of one node; each may hold LINK_BYTES
MAX_LINK_HELLO: Final = 1 * KIB  # bytes of a link's first frame: before it nobody needs more
LINK_REQUESTS: Final = 64  # requests in flight on one link, keepalive included
LINK_BYTES: Final = 8 * MIB  # bytes of requests in flight on one link, each way
LINK_HANDSHAKE_S: Final = 10.0  # seconds from connect to the other's hello
LINK_PING_S: Final = 4.0  # seconds without a byte after which a dialer pings
LINK_SILENCE_S: Final = 12.0  # seconds without a byte after which a link is dead (half-open, swallowed)
LINK_BACKOFF_S: Final = 0.05  # seconds before the second dial; doubled up to LINK_BACKOFF_MAX_S, jittered
LINK_BACKOFF_MAX_S: Final = 5.0
LINK_WRITE: Final = 64 * KIB  # bytes of queued frames after which one write takes no more of them
CELL_HANDSHAKE_S: Final = 3.0  # the same inside a cell, where all are near and a block waits for a majority
CELL_PING_S: Final = 1.0
CELL_SILENCE_S: Final = 4.0  # a full block and its like must get through a slow network in that time
CELL_BACKOFF_MAX_S: Final = 0.5
NOTE_BYTES: Final = 8 * MIB  # bytes of notes queued for one node; past it they are dropped, Raft sends again
SNAPSHOT_DEADLINE_S: Final = 600.0  # seconds in which a store fetches a checkpoint from another
MAX_EPHEMERAL: Final = 4_096  # bytes of an ephemeral payload

# --- the directory -------------------------------------------------------------------------------
BARRIER_S: Final = 3.0  # seconds a node may take to learn what its cell has committed, before it denies something
BARRIER_EVERY_S: Final = 1.0  # seconds between two blocks that one other cell causes by asking for nobody: 86,400 a day
LOOKUP_S: Final = 10.0  # seconds a lookup in other cells may take, with all the homes that it is sent on to
MAX_HOPS: Final = 16  # homes that one lookup is sent on to; the next one goes on from there
DIRECTORY_FRESH: Final = 60 * SECOND  # ms a foreign home record is used before its cell is asked for a newer one
DIRECTORY_RETRY: Final = 2 * SECOND  # ms a failed lookup is the answer to everybody who asks the same
DIRECTORY_CACHE: Final = 8 * MIB  # bytes of foreign home records in memory
DIRECTORY_FAILURES: Final = 4_096  # failed lookups remembered

# --- the replicated log of a cell ----------------------------------------------------------------
RAFT_HEARTBEAT: Final = 100  # ms between two signs of life of a leader; ten may be lost before an election
RAFT_ELECTION: Final = 1 * SECOND  # ms (at least; at most twice that) without a leader before a store asks for votes
RAFT_APPEND: Final = 1 * MIB  # bytes of blocks in one append; the first block goes in whatever its size
RAFT_APPEND_ENTRIES: Final = 4_096  # entries in one append; below MAX_ARRAY
RAFT_INFLIGHT: Final = 8 * MIB  # bytes sent to one peer and not acknowledged
RAFT_INFLIGHT_APPENDS: Final = 64  # appends sent to one peer and not acknowledged
RAFT_TAIL: Final = 16 * MIB  # bytes of blocks that a leader holds uncommitted; past it nothing more is taken
MAX_CELL: Final = 9  # stores of one cell: 5 voters, replacements that were added before the old ones go, learners
MAX_INBOX: Final = 16 * MIB  # bytes of notes that wait for a store's Raft; past it they are dropped
MAX_CLOCK_APART: Final = 10 * SECOND  # ms a leader's clock may be from the median of the voters'; then it steps down

# --- the region logs -----------------------------------------------------------------------------
MAX_TREE: Final = 2**63 - 1  # leaves of a log: what a signed 64-bit column of a store holds
MAX_LOG_ENTRY: Final = 65_535  # bytes of one entry of a log: its length is 16 bits in an entry bundle (tlog-tiles)
MAX_PROOF: Final = 63  # hashes of one proof: the height of the greatest tree; tlog-witness sends no more, either
MAX_SIGNATURES: Final = 64  # signatures of one note; the format asks for 16, 20 regions that rotate have 40
MAX_SIGNED_NOTE: Final = 128 * KIB  # bytes of a note: 16 post-quantum signatures that we pass over still fit
MAX_KEY_NAME: Final = 255  # bytes of a key's name, and of a log's origin
MAX_FORKS: Final = 256  # proofs of forks that a registrar shows: as many logs as a federation has regions
MAX_STAPLE: Final = 8 * KIB  # bytes of a proof that travels with a record; 2 KiB is the aim at 1,000,000 entries

# --- audit logs ----------------------------------------------------------------------------------
MAX_AUDIT_LINE: Final = 64 * KIB  # bytes of one line: a registrar's batch of 512 takes about 20 KiB
AUDIT_FILE: Final = 1 * MIB  # bytes of one file of an audit log: at every start the newest is read, 10 ms
AUDIT_FILES: Final = 64  # files that are kept, of about 3,000 entries each; then the oldest goes
AUDIT_HEAD: Final = 2 * KIB  # bytes of an audit log's signed checkpoint on a link: text, name and one signature
AUDIT_TELL_S: Final = 5.0  # seconds between two checkpoints of an audit log to one node: each is an entry there
AUDIT_ASK_S: Final = 60.0  # seconds between two that a registrar asks another one for: 0.9 MB of entries a day at most

# --- registrars ----------------------------------------------------------------------------------
MAX_REQUEST: Final = 16 * KIB  # bytes of an enrolment request: a home record of 32 devices takes 3
MAX_REQUESTS: Final = 512 * KIB  # bytes of many requests in one body, at the inner face only: 512 of an ordinary kind
REGISTRAR_QUEUE: Final = 4 * MIB  # bytes of requests that wait for the next batch; past it they are told to retry
REGISTRAR_BATCH: Final = 512  # requests in one batch: to check them takes a fifth of a second
WITNESS_S: Final = 5.0  # seconds a witness has for an answer, and a request waits for k of them
WITNESS_AGAIN_S: Final = 60.0  # seconds until an idle log asks for new cosignatures: their times say how fresh it is
WITNESS_BACKOFF_S: Final = 0.5  # seconds until a witness that failed is asked again; doubled up to the next
WITNESS_BACKOFF_MAX_S: Final = 30.0
GOSSIP_S: Final = 30.0  # seconds that a split view lives at most: found within two looks, and told within a pause
GOSSIP_LOOK_S: Final = 10.0  # seconds between two looks at what other witnesses saw, and what one takes at most
FORKS_WAIT_S: Final = 10.0  # seconds that a registrar waits for news of forks before it says that there are none
FORKS_PAUSE_S: Final = 5.0  # seconds between two questions for them at least, however soon they are answered
MAX_FORKS_WAITING: Final = 64  # who may wait for such news: a quarter of HTTP_CONNECTIONS; others ask again
CHECKPOINT_FRESH_S: Final = 600  # seconds: how old the newest checkpoint may be for "latest" and "absent" to count
HTTP_REQUEST_S: Final = 10.0  # seconds from a request's first byte to its last, and for its answer to be taken
HTTP_ANSWER_S: Final = 30.0  # seconds until a request that waits (for a batch, for witnesses) is given up
HTTP_IDLE_S: Final = 60.0  # seconds a connection may rest between two requests
HTTP_CROWDED_S: Final = 3.0  # the same where half of all connections are taken: who is idle makes room
HTTP_CONNECTIONS: Final = 256  # connections to one face of a registrar; each may hold one body
MAX_HTTP_HEAD: Final = 8 * KIB  # bytes of request line and headers
