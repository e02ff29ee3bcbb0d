from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from cluster.audit.shelf import Shelf
from cluster.demo.ledger import Account
from cluster.demo.report import Audit, Result, show, write_json



def audit(shelf: Shelf) -> list[Audit]:
    return [Audit("at the end", [shelf])]


CLEAN = Shelf("here", home=Counter(anna=7), transit=Counter(there=2), files=4)
GOOD = Result(Account(2000, 5000, 5000, 0, 0, 0, 1, 0), 4100, 3, audit(CLEAN), 1, 42.123, users_moved=1)


def test_the_json_has_exactly_the_promised_keys(tmp_path: Path) -> None:
    write_json(tmp_path / "out.json", GOOD)
    assert json.loads((tmp_path / "out.json").read_text()) == {
        "sent": 2000, "delivered": 5000, "lost": 0, "duplicated": 0, "wire_duplicates": 3, "reordered": 0,
        "foreign_bytes_at_rest": 0, "left_behind_bytes": 0, "plaintext_found": 0, "users_moved": 1, "nodes_killed": 1,
        "seconds": 42.1,
    }  # fmt: skip


@pytest.mark.parametrize(
    "bad",
    [
        replace(GOOD, account=replace(GOOD.account, lost=1)),
        replace(GOOD, account=replace(GOOD.account, duplicated=1)),
        replace(GOOD, account=replace(GOOD.account, reordered=1)),
        replace(GOOD, account=replace(GOOD.account, strange=1)),
        replace(GOOD, audits=audit(Shelf("here", foreign_bytes=1))),
        replace(GOOD, audits=audit(Shelf("here", in_the_open=1))),
        replace(GOOD, audits=audit(Shelf("here", findings=["a stray"]))),
        replace(GOOD, failures=["the border did not hold"]),
    ],
)  # fmt: skip
def test_anything_wrong_is_not_clean(bad: Result) -> None:
    assert GOOD.clean and not bad.clean


def test_whose_it_is_is_said_once_for_all_nodes_of_a_region() -> None:
    shelves = [replace(CLEAN, node="n1"), replace(CLEAN, node="n2"), Shelf("there", "n1", home=Counter(ben=2))]
    console = Console(record=True, width=100, force_terminal=False)
    show(console, replace(GOOD, audits=[Audit("at the end", shelves)]))
    text = console.export_text()
    assert text.count("here: anna 7, for there 2") == 1 and text.count("there: ben 2") == 1
    assert "here-n1" in text and "here-n2" in text and "there-n1" in text


def test_people_see_what_was_found() -> None:
    console = Console(record=True, width=160, force_terminal=False)
    show(console, replace(GOOD, audits=audit(Shelf("here", in_the_open=30, findings=["plaintext (raw) in log"] * 30))))
    text = console.export_text()
    assert "here: plaintext (raw) in log" in text and "10 more" in text and "went wrong" in text
    show(console, GOOD)
    text = console.export_text()
    assert "nodes of each region" in text and "stores wiped" in text
    assert "Nothing lost" in text and "anna 7" in text and "for there 2" in text
