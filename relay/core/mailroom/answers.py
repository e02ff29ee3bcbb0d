"""What another cell answered to our hand-overs (rule 16)."""

from __future__ import annotations

from relay.core import records
from relay.core.mailroom import moving, outboxes, parking
from relay.core.mailroom.outboxes import MAX_LOGS
from relay.core.mailroom.turn import Turn
from relay.core.wire import Code
from relay.limits import MAX_BATCH


def handed(turn: Turn, record: records.Handed) -> None:
    """The destination has applied everything up to `record.upto`; tell the senders what became of it."""
    turn.next_position()
    outbox = turn.state.outboxes.get(record.dest)
    if outbox is None or not outbox.done < record.upto <= min(outbox.last, outbox.done + MAX_BATCH):
        return
    if record.log != outbox.log:
        if record.known != outbox.log:
            return  # a late answer, of a log that was renewed since: what it had taken may be lost, and goes out again
        outbox.logs = (*outbox.logs, record.log)[-MAX_LOGS:]
    answers = {answer.number: answer for answer in record.answers}
    for place in range(outbox.done + 1, record.upto + 1):
        item, answer = outbox.items.pop(place), answers.get(place)
        if item.what == records.HANDIN_VOID:
            continue
        # Without an answer the destination saw a void number: it expired on a forward that was under way.
        code, newest = (answer.code, answer.newest) if answer else (int(Code.EXPIRED), 0)
        if item.what == records.HANDIN_MOVE:
            moving.confirmed(turn, record.dest, item, code, newest)
        if code == Code.NOT_PERMITTED and moving.go_round(turn, outbox, record.dest, item):
            continue
        if item.group and parking.take(turn, record.dest, item, code):
            continue
        if code == Code.ACCEPTED and item.what in (records.HANDIN_ENVELOPE, records.HANDIN_FORWARD):
            outboxes.taken_over(turn, record.dest, place, item, newest)
            continue
        outboxes.end(turn, outbox, item, code, newest, record.dest)
    outbox.done = record.upto
