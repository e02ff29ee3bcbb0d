"""To hear of forks within moments: a registrar is asked for what it knows, and answers once that is something else than
what it said last (Witness.forks_but). One that does not know such questions answers at once, and is asked again soon.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
import trio

from relay.core.tlog import read_forks
from relay.errors import PeerError, TrustError
from relay.limits import FORKS_PAUSE_S, FORKS_WAIT_S, WITNESS_S

_log = structlog.get_logger("cluster.registrar.hearing")
Ask = Callable[[], Awaitable[bytes]]  # proofs for `tlog.read_forks` (HttpDoor.news). Raises PeerError


async def listen(registrar: str, ask: Ask, take: Callable[[bytes], Awaitable[None]]) -> None:
    """Until cancelled: each proof that the registrar of that region shows is given to `take`, which raises TrustError
    where it proves nothing. Asked no more often than every FORKS_PAUSE_S, whatever it answers, or does not."""
    silent = ""
    while True:
        asked = trio.current_time()
        try:
            with trio.fail_after(FORKS_WAIT_S + WITNESS_S):
                proofs = read_forks(await ask())
            silent = ""
        except (PeerError, TrustError, trio.TooSlowError) as error:
            proofs, text = (), str(error) or "no answer in time"
            if text != silent:  # once, as long as nothing changes
                _log.info("forks_not_told", registrar=registrar, text=text)
            silent = text
        for proof in proofs:
            try:
                await take(proof)
            except TrustError as error:
                _log.warning("no_fork", registrar=registrar, text=error.text)
        await trio.sleep_until(asked + FORKS_PAUSE_S)
