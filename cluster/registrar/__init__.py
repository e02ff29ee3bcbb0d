"""A region's registrar: a process of its own, which checks, signs and logs home records, and stands by other regions'
logs. ([ADR 19](../../docs/adr/0019-registrars.md), DESIGN section 6.)

    store     the registry: entries, tiles, map and head of the log, in one SQLite file
    log       the one task that owns it: requests in, batches, checkpoints, answers
    choir     cosignatures from the other regions
    witness   cosignatures for them
    http, faces   how all of it is asked
    audit     a replay of somebody's log
"""
