"""A process that appends until it is killed or its disk fails; run by test_journal_crash.py.

    python writer_child.py DIRECTORY [FILE-SIZE-LIMIT]     (PYTHONPATH: this directory and the root)

The variable JOURNAL_SYNCHRONOUS=OFF takes the syncs away, for tests that are to find out.
Prints `acked N` after the commit of block N, and `failed …` where the disk failed and stays failed.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import trio
from conftest import FakeEnv, solo

from relay.errors import DiskFailed
from relay.journal import database
from tests.relay.journal.checkpoints import load_checkpoint

RECORDS = [bytes([number]) * 2_000 for number in range(5)]


async def main(directory: Path) -> None:
    env = FakeEnv(seed=7)
    async with solo(directory, env=env) as journal:
        follower = journal.follow(journal.tip)
        try:
            while True:
                env.clock.pass_ms(1)
                await journal.append([b"%d" % (journal.tip + 1), *RECORDS])
                print(f"acked {journal.tip}", flush=True)
                if journal.tip % 50 == 0:
                    await journal.save_checkpoint(journal.tip, [b"state %d" % journal.tip] * 100)
                    await journal.release(journal.tip - 30)
        except DiskFailed as error:
            failed = [error.text]
        calls = [
            lambda: journal.append([b"x"]),
            lambda: journal.read(journal.tip),
            lambda: journal.release(1),
            lambda: journal.save_checkpoint(journal.tip, []),
            lambda: load_checkpoint(journal),
            lambda: anext(follower),
        ]
        for call in calls:
            try:
                await call()
            except DiskFailed as error:
                failed.append(error.text)
        try:
            journal.follow(0)
        except DiskFailed as error:
            failed.append(error.text)
        print("failed", len(failed), len(set(failed)), failed[0], flush=True)


if value := os.environ.get("JOURNAL_SYNCHRONOUS"):
    off = [pragma.replace("synchronous = FULL", f"synchronous = {value}") for pragma in database._PRAGMAS]
    database._PRAGMAS = tuple(off)
if len(sys.argv) > 2:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
trio.run(main, Path(sys.argv[1]))
