"""Users who move between cells at random, with hand-overs late, twice or in parts: at the end every device has
at its home exactly what was sent to it, and every sender every outcome."""

from __future__ import annotations

from collections import Counter

from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from relay.core.envelope import envelope_id
from relay.core.mailroom import Mailroom
from relay.core.wire import Code
from tests.relay.core.mailroom.test_moving import A, B, C, World, enrolled


class Moves(RuleBasedStateMachine):
    """Letters, moves and hand-overs in any order."""

    names = ("alice", "bob", "carol")
    cells = (A, B, C)

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.users = {name: enrolled(self.world, name, cell) for name, cell in zip(self.names, self.cells, strict=True)}
        self.believed = {(cell, name): user.cell for cell in self.cells for name, user in self.users.items()}
        self.sent: dict[str, list[bytes]] = {name: [] for name in self.names}
        self.outcomes: dict[str, Counter[bytes]] = {name: Counter() for name in self.names}
        self.moves = 0

    def home(self, name: str) -> str | None:
        """Where the user is known to be at home by that cell's own log."""
        user = self.users[name]
        return user.cell if user.id in self.world.state(user.cell).users else None

    @rule(sender=st.sampled_from(names), to=st.sampled_from(names), fresh=st.booleans())
    def send(self, sender: str, to: str, fresh: bool) -> None:
        cell = self.home(sender)
        if cell is None or sender == to:
            return
        log, user = self.world.logs[cell], self.users[to]
        gone = log.room.state.moved.get(user.id)
        if user.id in log.room.state.users or (gone and not gone.confirmed):
            self.believed[cell, to] = cell
        elif gone and fresh:  # what the directory says, now or some time ago
            self.believed[cell, to] = gone.record.cell
        body = f"{sender} {to} {len(self.sent[to])}".encode()
        sealed = log.seal(user.id, body=body)
        code = log.answers(log.submit(sender[0] + "1", sealed, self.believed[cell, to]))[0]
        assert code < Code.STALE, f"{Code(code).name}: {sender} in {cell} to {to}"
        self.sent[to].append(envelope_id(sealed))
        if code == Code.ACCEPTED:
            self.outcomes[sender][envelope_id(sealed)] += 1

    @rule(name=st.sampled_from(names), to=st.sampled_from(cells), tell=st.sampled_from((0, 1)))
    def move(self, name: str, to: str, tell: int) -> None:
        user = self.users[name]
        if user.cell != to and self.moves < 12:
            self.moves += 1
            old = user.cell
            self.world.move(user, to, tell=(old, to)[tell])

    @rule(one=st.sampled_from(cells), other=st.sampled_from(cells), count=st.integers(1, 4), answered=st.booleans())
    def hand(self, one: str, other: str, count: int, answered: bool) -> None:
        if one != other:
            self.world.hand(one, other, count, answered=answered)

    @rule(one=st.sampled_from(cells), other=st.sampled_from(cells))
    def answer_late(self, one: str, other: str) -> None:
        outbox = self.world.state(one).outboxes.get(other)
        origin = self.world.state(other).origins.get((one, self.world.state(one).log_id))
        if outbox and origin and origin.vector > outbox.done:
            self.world.answer(one, other)

    @invariant()
    def a_checkpoint_gives_the_same_state(self) -> None:
        for log in self.world.logs.values():
            again = Mailroom.from_checkpoint(list(log.room.checkpoint()))
            assert again.digest() == log.room.digest()
            assert {k: (m.items, m.bytes) for k, m in again.state.moved.items()} == {
                k: (m.items, m.bytes) for k, m in log.room.state.moved.items()
            }

    def teardown(self) -> None:
        world = self.world
        world.settle()
        for name, user in self.users.items():
            assert user.id in world.state(user.cell).users, f"{name} is nowhere"
            got = list(world.logs[user.cell].ids(name[0] + "1"))
            mail = [one for one in got if len(one) == 32]
            assert sorted(mail) == sorted(self.sent[name]), f"{name} in {user.cell}"
            told = Counter(one[1:] for one in got if len(one) == 33)
            assert told == self.outcomes[name], f"{name} is not told what became of everything"
        for cell in self.cells:
            state = world.state(cell)
            assert not state.pending and not any(box.taken_over for box in state.outboxes.values()), cell
            here = {user.id for user in self.users.values() if user.cell == cell}
            waiting = {key for key, user in state.users.items() if len(user.box)}
            assert waiting <= here and len(state.sources) == sum(len(user.box) for user in state.users.values())
            replayed = Mailroom(cell, world.logs[cell].log_id)
            for block in world.logs[cell].blocks:
                replayed.apply(block)
            assert replayed.digest() == world.logs[cell].room.digest()


TestMoves = Moves.TestCase
TestMoves.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
