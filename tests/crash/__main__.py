"""`make crash ROUNDS=n [SEED=k] [KIND=…] [SYNC=off]`: a cell of three real nodes under load, and what can befall it.

A line for each round, and one of totals. Exit status 1 unless nothing was lost, duplicated or reordered; with SYNC=off
(SQLite does not sync) or SYNC=none (nothing does) unless something was.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import trio

from tests.crash.cell import Hang
from tests.crash.checker import Verdict
from tests.crash.flips import UNNOTICED
from tests.crash.kinds import KINDS
from tests.crash.lines import Lines, enter
from tests.crash.site import BACK_S, RATE, Site, now_ms, open_site

_LOAD_S = (3.0, 6.0)  # of load before something happens
_AFTER_S = 1.0  # and after it


class Tool:
    """What one call of the tool found."""

    def __init__(self, options: argparse.Namespace, lines: Lines | None) -> None:
        self._options, self._lines = options, lines
        self._synced = options.sync == "all"
        self.rounds = 0
        self.counts: Counter[str] = Counter()
        self.totals = Verdict()
        self.hangs = self.tracebacks = self.early = 0
        self._rates: list[float] = []
        self._pauses: list[int] = []

    # --- rounds ----------------------------------------------------------------------------------
    async def run(self, directory: Path) -> None:
        """All rounds: on one cell, as long as it is well; where nodes do not sync, each on a new one."""
        wanted = self._options.rounds
        while self.rounds < wanted and not (self._synced and self.hangs):
            place = directory / f"from-{self.rounds + 1}"
            place.mkdir()
            await self._on_a_site(place, self._options.seed + self.rounds, wanted if self._synced else 1)

    async def _on_a_site(self, place: Path, seed: int, rounds: int) -> None:
        options = self._options
        async with open_site(place, self._lines, seed, options.sync, options.rate, options.often) as site:
            site.back_s = BACK_S if self._synced else BACK_S / 4  # what is lost does not come back
            for _ in range(rounds):
                self.rounds += 1
                name = options.kind[(self.rounds - 1) % len(options.kind)]
                hangs, stood = self.hangs, site.stood_s
                try:
                    text = await self._round(site, name)
                except Hang as hang:
                    self.hangs += 1
                    text = f"did not come back: {hang}"
                if site.stood_s > stood:
                    text += f"; all of this was stopped for {site.stood_s - stood:.0f} s, which counts in what it took"
                site.checker.settle()
                self._say(name, text, site)
                if self.hangs > hangs:
                    break
            self._add(site)

    async def _round(self, site: Site, name: str) -> str:
        """Load, a strike, the way back, and everything that was acknowledged. Raises Hang."""
        rng = site.rng
        away = rng.sample(range(1, site.devices), site.devices // 2)  # device 0 publishes the group's roster
        await site.order(f"away {' '.join(map(str, away))}")  # what waits for them is only in the cell
        await site.order("send")
        started = now_ms()
        await trio.sleep(rng.uniform(*_LOAD_S))
        struck = now_ms()
        rate = site.checker.rate(started, struck)
        self._rates.append(rate)
        text, counts = await KINDS[name](site)
        self.counts += counts
        whole = await site.whole()
        await site.answered_since(now_ms())
        pause = site.checker.pause(struck, now_ms())
        await trio.sleep(_AFTER_S)
        await site.drain()
        self._pauses.append(pause)
        return f"{rate:.0f} acks/s; {text}; no ack for {pause} ms, whole {whole:.1f} s after"

    # --- saying ----------------------------------------------------------------------------------
    def _say(self, name: str, text: str, site: Site) -> None:
        verdict = site.checker.verdict
        ended = sum(len(node.ended) for node in site.cell.nodes)
        print(
            f"round {self.rounds}: {name}: {text}; {verdict.acknowledged} acknowledged, {verdict.delivered} delivered, "
            f"lost {verdict.lost}, duplicated {verdict.duplicated}, reordered {verdict.reordered}"
            + (f", wrong {verdict.wrong}" if verdict.wrong else "")
            + (f"; nodes that ended by themselves: {ended}" if ended else ""),
            flush=True,
        )

    def _add(self, site: Site) -> None:
        for name in Verdict.__slots__:
            setattr(self.totals, name, getattr(self.totals, name) + getattr(site.checker.verdict, name))
        self.early += len(site.cell.early)
        for finding in [*site.checker.findings[: 20 if self._synced else 3], *site.cell.early]:
            print(f"  {finding}", flush=True)
        for node in site.cell.nodes:
            for words in node.ended[: 5 if self._synced else 1]:
                print(f"  {words}", flush=True)
        self.tracebacks += site.cell.tracebacks()

    def totals_line(self) -> str:
        total = self.totals
        counts = "".join(f", {count} {what}" for what, count in sorted(self.counts.items()))
        rate = f" ({min(self._rates):.0f}–{max(self._rates):.0f}/s)" if self._rates else ""
        pauses = f", no ack for at most {max(self._pauses)} ms" if self._pauses else ""
        return (
            f"crash: {self.rounds} rounds, seed {self._options.seed}, {total.acknowledged} acknowledged{rate}, "
            f"{total.delivered} delivered{counts}{pauses}, {total.reconnects} reconnects, {total.refused} refused, "
            f"{total.wire_duplicates} wire duplicates, {total.late} late after a retry, {self.tracebacks} tracebacks, "
            f"{self.early} voted too early, "
            f"hangs {self.hangs}, wrong {total.wrong}, "
            f"lost {total.lost}, duplicated {total.duplicated}, reordered {total.reordered}"
        )

    @property
    def failed(self) -> bool:
        if not self._synced:
            return not self.totals.lost
        return not self.totals.clean or self.hangs + self.early > 0 or self.counts[UNNOTICED] > 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="crash", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", default="power", help=f"some of {', '.join(KINDS)}, with commas; or all")
    parser.add_argument("--sync", choices=("all", "off", "none"), default="all")
    parser.add_argument("--rate", type=float, default=RATE, help="messages a second that the load offers")
    parser.add_argument("--often", type=int, default=0, help="KiB of log between two checkpoints of a node")
    parser.add_argument("--keep", type=Path, help="a new directory for everything; kept")
    options = parser.parse_args()
    options.kind = list(KINDS) if options.kind == "all" else options.kind.split(",")
    unknown = set(options.kind) - set(KINDS)
    if unknown:
        parser.error(f"no kind {', '.join(unknown)}")
    if options.often and options.sync != "all":
        parser.error("--often is for nodes that sync")
    return options


def main() -> int:
    options = _options()
    inside = enter("tests.crash", sys.argv[1:])
    lines = Lines(3) if inside else None
    directory = options.keep or Path(tempfile.mkdtemp(prefix="crash-"))
    directory.mkdir(parents=True, exist_ok=True)
    tool = Tool(options, lines)
    started = time.monotonic()
    try:
        trio.run(tool.run, directory)
    finally:
        if lines:
            lines.close()
        print(f"{tool.totals_line()}  [{time.monotonic() - started:.0f} s]", flush=True)
    if tool.failed or options.keep:
        print(f"everything is kept in {directory}", flush=True)
    else:
        shutil.rmtree(directory)
    return int(tool.failed)


if __name__ == "__main__":
    sys.exit(main())
