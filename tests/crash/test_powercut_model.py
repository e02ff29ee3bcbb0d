"""The power cut's model, on scripts that end by their own SIGKILL: what survives, what comes back, what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from tests.crash.powercut import Cut, PowercutError, build, cut, environment
from tests.patience import PATIENCE_S

OLD, NEW = b"o" * 10_000, b"n" * 12_000
PRELUDE = f"""
import os, sys, threading
OLD, NEW = {OLD!r}, {NEW!r}
def put(name, data, sync=True):
    handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.write(handle, data)
    if sync:
        os.fsync(handle)
    os.close(handle)
def sync_dir(name="."):
    handle = os.open(name, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
def die():
    os.kill(os.getpid(), 9)
"""
State = dict[str, bytes]


def run(directory: Path, script: str, *, end: int = -9) -> str:
    """Run a script within directory/watch, over the shim. Its standard error."""
    variables = environment(build(), directory / "watch", directory / "undo", real_fsync=False)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"{PRELUDE}{script}\ndie()"],
        cwd=directory / "watch", env={**os.environ, **variables},
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == end, done.stderr
    return done.stderr


def state(directory: Path) -> State:
    """Name → content of everything in the watched directory; b"/" for a directory."""
    watch = directory / "watch"
    paths = sorted(watch.rglob("*"))
    return {path.relative_to(watch).as_posix(): b"/" if path.is_dir() else path.read_bytes() for path in paths}


def power_cut(directory: Path, seed: int, *, strict: bool = False) -> Cut:
    result = cut(directory / "watch", directory / "undo", Random(seed), strict=strict)
    assert not list((directory / "undo").iterdir())
    return result


# --- data: each file is cut by itself, so that one run shows many --------------------------------
FILES = 30
EACH = f"for a in [str(number) for number in range({FILES})]:\n "
WRITES = [
    "h = os.open(a, os.O_RDWR); os.write(h, NEW)",
    "h = os.open(a, os.O_WRONLY); os.pwrite(h, NEW, 0)",
    "h = os.open(a, os.O_RDWR); os.writev(h, [NEW[:5_000], NEW[5_000:]])",
    "h = os.open(a, os.O_RDWR); os.pwritev(h, [NEW[6_144:]], 6_144); os.pwrite(h, NEW[:6_144], 0)",
    "h = os.dup(os.open(a, os.O_RDWR)); os.write(h, NEW)",
    "g = os.open(a, os.O_RDWR); h = os.dup2(g, 77); os.close(g); os.write(h, NEW)",
    "d = os.open('.', os.O_RDONLY); h = os.open(a, os.O_RDWR, dir_fd=d); os.write(h, NEW)",
    "h = os.open(a, os.O_RDWR); p = os.fork(); p or (os.write(h, NEW), die()); os.wait()",
    "b = open(a, 'r+b', buffering=0); h = b.fileno(); b.write(NEW); c = b if a == '0' else (c, b)",
    "os.symlink(a, a + '-'); sync_dir(); h = os.open(a + '-', os.O_WRONLY); os.write(h, NEW)",
    "os.rename(a, a + '-'); os.rename(a + '-', a); sync_dir(); h = os.open(a, os.O_RDWR); os.write(h, NEW)",
]


def with_files(directory: Path) -> None:
    """Files that are durable: they were there before."""
    (directory / "watch").mkdir()
    for number in range(FILES):
        (directory / "watch" / str(number)).write_bytes(OLD)


def contents(directory: Path) -> list[bytes]:
    return [(directory / "watch" / str(number)).read_bytes() for number in range(FILES)]


def is_mixture(data: bytes) -> bool:
    """Is every sector the old one's or the new one's?"""
    both = [version.ljust(len(NEW), b"\0") for version in (OLD, NEW)]
    ends = [(at, min(at + 512, len(data))) for at in range(0, len(data), 512)]
    return len(OLD) <= len(data) <= len(NEW) and all(data[a:b] in [v[a:b] for v in both] for a, b in ends)


@pytest.mark.parametrize("write", WRITES)
def test_unsynced_writes_are_lost_torn_and_kept(tmp_path: Path, write: str) -> None:
    with_files(tmp_path)
    run(tmp_path, EACH + write)
    assert contents(tmp_path) == [NEW] * FILES  # as SIGKILL leaves it
    result = power_cut(tmp_path, 1)
    found = contents(tmp_path)
    assert OLD in found and NEW in found and len(set(found)) > 5
    assert all(map(is_mixture, found))
    assert result.dropped and result.kept and result.torn
    assert result.dropped + result.kept + result.torn == FILES * (2 if "6_144" in write else 1)


@pytest.mark.parametrize("sync", [
    *[write + "; os.fdatasync(h)" for write in WRITES],
    "h = os.open(a, os.O_WRONLY | os.O_SYNC); os.write(h, NEW)",
    "h = os.open(a, os.O_WRONLY | os.O_DSYNC); os.pwrite(h, NEW, 0)",
    "put(a, NEW)",
    "put(a, NEW, sync=False); h = os.open(a, os.O_RDONLY); os.fsync(h)",
    "h = os.open(a, os.O_RDWR); os.write(h, NEW); p = os.fork(); p or (os.fsync(h), die()); os.wait()",
])  # fmt: skip
def test_what_was_synced_stays(tmp_path: Path, sync: str) -> None:
    with_files(tmp_path)
    run(tmp_path, EACH + sync)
    assert power_cut(tmp_path, 2) == Cut()
    assert contents(tmp_path) == [NEW] * FILES


def test_what_was_written_after_the_sync_goes_back_to_it(tmp_path: Path) -> None:
    with_files(tmp_path)
    run(tmp_path, EACH + "h = os.open(a, os.O_RDWR | os.O_APPEND); os.write(h, NEW); os.fsync(h); os.write(h, OLD)")
    power_cut(tmp_path, 3)
    found = contents(tmp_path)
    assert all(data.startswith(OLD + NEW) for data in found)
    assert {OLD + NEW, OLD + NEW + OLD} < set(found)


def test_a_write_is_undone_to_any_version_that_was_there(tmp_path: Path) -> None:
    with_files(tmp_path)
    run(tmp_path, EACH + "h = os.open(a, os.O_RDWR); [os.pwrite(h, bytes([v]) * 10_000, 0) for v in range(9)]")
    power_cut(tmp_path, 4)
    found = {data[at] for data in contents(tmp_path) for at in range(0, len(OLD), 512)}
    assert found == {*range(9), ord("o")}


def test_a_truncation_is_whole(tmp_path: Path) -> None:
    """A file of which a truncation is lost has its old bytes, never zeros; what follows goes with it."""
    with_files(tmp_path)
    run(tmp_path, EACH + "put(a, NEW, sync=False)")
    power_cut(tmp_path, 5)
    found = contents(tmp_path)
    assert OLD in found and b"" in found and NEW in found
    assert all(data == OLD or set(data) <= {0, ord("n")} for data in found)


def test_truncations_are_in_order(tmp_path: Path) -> None:
    with_files(tmp_path)
    run(tmp_path, EACH + "h = os.open(a, os.O_RDWR); [os.ftruncate(h, size) for size in (9_000, 5_000, 1_000)]")
    power_cut(tmp_path, 5)
    assert set(contents(tmp_path)) == {OLD, OLD[:9_000], OLD[:5_000], OLD[:1_000]}


def test_a_file_that_grew_may_have_the_size_and_not_the_data(tmp_path: Path) -> None:
    with_files(tmp_path)
    grow = "h = os.open(a, os.O_RDWR); os.ftruncate(h, 10_500); os.posix_fallocate(h, 0, 11_000)"
    run(tmp_path, EACH + grow + "; os.pwrite(h, NEW[11_000:], 11_000)")
    power_cut(tmp_path, 6)
    found = contents(tmp_path)
    assert {10_000, 12_000} < {len(data) for data in found}
    assert all(data.startswith(OLD) and set(data[10_000:]) <= {0, ord("n")} for data in found)


def test_threads_and_descriptors_side_by_side(tmp_path: Path) -> None:
    script = """
handles = [os.open(str(n % 3), os.O_RDWR) for n in range(6)]
def work(n):
    for turn in range(200):
        os.pwrite(handles[n], bytes([turn]) * 700, n * 700)
        if turn % 10 == 9:
            os.fdatasync(handles[n])
threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
[t.start() for t in threads]
[t.join() for t in threads]
[os.pwrite(h, b'?' * 700, 5_000) for h in handles]
"""
    with_files(tmp_path)
    run(tmp_path, script)
    power_cut(tmp_path, 7)
    for n in range(6):
        assert contents(tmp_path)[n % 3][n * 700 : n * 700 + 700] == bytes([199]) * 700


def test_the_log_stays_small(tmp_path: Path) -> None:
    with_files(tmp_path)
    script = "h = os.open('0', os.O_RDWR)\nfor n in range(900):\n os.pwrite(h, NEW * 5, 0); os.fdatasync(h)"
    run(tmp_path, f"{script}\nos.pwrite(h, OLD * 6, 0)")  # 54 MB were overwritten
    (log,) = (tmp_path / "undo").iterdir()
    assert log.stat().st_size < 5_000_000
    for seed in range(50):
        if power_cut(tmp_path, seed).dropped:
            break
        run(tmp_path, "h = os.open('0', os.O_RDWR); os.pwrite(h, NEW * 5, 0); os.fsync(h); os.pwrite(h, OLD * 6, 0)")
    assert contents(tmp_path)[0] == NEW * 5


def test_a_process_syncs_what_one_before_it_wrote(tmp_path: Path) -> None:
    with_files(tmp_path)
    run(tmp_path, EACH + "put(a, NEW, sync=False)")  # killed, with no power cut
    run(tmp_path, EACH + "h = os.open(a, os.O_RDONLY); os.fsync(h)")
    assert power_cut(tmp_path, 8) == Cut()
    assert contents(tmp_path) == [NEW] * FILES


def test_the_same_seed_cuts_the_same(tmp_path: Path) -> None:
    results = []
    for name in "ab":
        (tmp_path / name).mkdir()
        with_files(tmp_path / name)
        run(tmp_path / name, EACH + "os.unlink(a); put(a + '.new', NEW, sync=False); os.rename(a + '.new', a)")
        results.append((power_cut(tmp_path / name, 9), state(tmp_path / name)))
    assert results[0] == results[1]


# --- names ----------------------------------------------------------------------------------------
SEEDS = range(12)
HAS_OLD = "put('a', OLD); sync_dir()\n"


def states(path: Path, script: str, *, strict: bool = False) -> list[State]:
    """What the power cuts of some seeds leave of a script."""
    for seed in SEEDS:
        run(path / str(seed), script)
        power_cut(path / str(seed), seed, strict=strict)
    return [state(path / str(seed)) for seed in SEEDS]


@pytest.mark.parametrize("strict", [False, True])
def test_a_new_file(tmp_path: Path, strict: bool) -> None:
    found = states(tmp_path / "unsynced", "put('a', NEW, sync=False)", strict=strict)
    assert {} in found and {"a": NEW} in found and any(len(s.get("a", NEW)) < len(NEW) for s in found)
    found = states(tmp_path / "synced", "put('a', NEW)", strict=strict)
    assert ({} in found) == strict and {"a": NEW} in found  # POSIX promises the data and not the name
    found = states(tmp_path / "both", "put('a', NEW); sync_dir()", strict=strict)
    assert found == [{"a": NEW}] * len(SEEDS)


def test_names_are_made_in_order(tmp_path: Path) -> None:
    found = states(tmp_path / "plain", "for name in 'abcd': put(name, b'', sync=False)")
    assert {"".join(s) for s in found} == {"abcd"[:count] for count in range(5)}
    found = states(tmp_path / "synced", "for name in 'abcd': put(name, b'', sync=name == 'c')")
    assert {"".join(s) for s in found} == {"abc", "abcd"}


@pytest.mark.parametrize("strict", [False, True])
def test_a_file_that_takes_anothers_place(tmp_path: Path, strict: bool) -> None:
    replace = HAS_OLD + "put('b', NEW, sync={}); os.rename('b', 'a')"
    found = states(tmp_path / "synced", replace.format(True), strict=strict)
    assert {s["a"] for s in found} == {OLD, NEW}  # one or the other, whole
    assert all(s.get("b", NEW) == NEW for s in found)
    found = states(tmp_path / "unsynced", replace.format(False), strict=strict)
    assert any(s["a"] not in (OLD, NEW) for s in found)  # the well-known mistake
    found = states(tmp_path / "durable", replace.format(True) + "; sync_dir()", strict=strict)
    assert found == [{"a": NEW}] * len(SEEDS)


@pytest.mark.parametrize("strict", [False, True])
def test_a_file_that_goes(tmp_path: Path, strict: bool) -> None:
    found = states(tmp_path / "unsynced", HAS_OLD + "os.unlink('a')", strict=strict)
    assert {} in found and {"a": OLD} in found
    found = states(tmp_path / "anew", HAS_OLD + "os.unlink('a'); put('a', NEW)", strict=strict)
    after = {s.get("a") for s in found}
    assert OLD in after and after <= {OLD, NEW, None} if strict else after == {NEW}
    found = states(tmp_path / "durable", HAS_OLD + "os.unlink('a'); sync_dir()", strict=strict)
    assert found == [{}] * len(SEEDS)


def test_directories(tmp_path: Path) -> None:
    script = "os.mkdir('d'); os.mkdir('d/e'); put('d/a', NEW); os.link('d/a', 'd/b'); sync_dir('d')"
    whole = {"d": b"/", "d/a": NEW, "d/b": NEW, "d/e": b"/"}
    assert states(tmp_path / "journaled", script) == [whole] * len(SEEDS)
    found = states(tmp_path / "strict", script, strict=True)
    assert {} in found and whole in found and all(s in ({}, whole) for s in found)
    assert states(tmp_path / "both", script + "; sync_dir()", strict=True) == [whole] * len(SEEDS)
    found = states(tmp_path / "gone", "os.mkdir('d'); sync_dir(); os.rmdir('d')")
    assert {} in found and {"d": b"/"} in found


# --- what it cannot do ----------------------------------------------------------------------------
@pytest.mark.parametrize(("call", "what"), [
    ("import mmap; mmap.mmap(h, 10_000)", "a shared mapping for writing"),
    ("os.sendfile(h, os.open('1', os.O_RDONLY), 0, 10)", "sendfile"),
    ("os.copy_file_range(os.open('1', os.O_RDONLY), h, 10)", "copy_file_range"),
    ("os.truncate('0', 5)", "truncate by path"),
    ("os.pwritev(h, [b'x'], 0, os.RWF_DSYNC)", "pwritev2 with flags"),
    ("os.rename('0', '../0')", "a rename into or out of the watched directory"),
    ("os.mkdir('d'); os.rename('d', 'e')", "a rename of a directory"),
    ("import ctypes; ctypes.CDLL(None).fopen(b'0', b'r+')", "fopen for writing"),
])  # fmt: skip
def test_what_cannot_be_tracked_aborts(tmp_path: Path, call: str, what: str) -> None:
    with_files(tmp_path)
    error = run(tmp_path, f"h = os.open('0', os.O_RDWR)\n{call}", end=-6)
    assert error.startswith("powercut: ") and what in error and str(tmp_path) in error


def test_what_is_elsewhere_is_let_through(tmp_path: Path) -> None:
    script = "import mmap; os.chdir('..'); put('x', OLD); mmap.mmap(os.open('x', os.O_RDWR), 10_000)[0] = 1"
    run(tmp_path, script + "; os.truncate('x', 5); os.mkdir('d'); os.rename('d', 'e'); os.rename('x', 'y')")
    (log,) = (tmp_path / "undo").iterdir()
    assert not log.stat().st_size
    assert power_cut(tmp_path, 1) == Cut()
    assert (tmp_path / "y").read_bytes() == b"\1oooo"


def test_a_cut_without_the_shim_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PowercutError, match="no process ran"):
        power_cut(tmp_path, 1)


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PowercutError, match="install one"):
        build(tmp_path)


def test_the_undo_log_is_beside_what_it_watches(tmp_path: Path) -> None:
    with pytest.raises(PowercutError, match="cannot watch itself"):
        environment(Path("x.so"), tmp_path, tmp_path / "undo")
