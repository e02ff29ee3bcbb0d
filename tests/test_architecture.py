"""The shape of the house, kept by tests: who may import whom, how long a file may be, and what must not be committed.

Everything is read from the syntax trees; nothing is imported. Each message says what to do.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("relay", "cluster", "bench")
MAX_FILE, MAX_FUNCTION = 400, 70  # lines

IMPURE = {
    "asyncio", "datetime", "multiprocessing", "os", "random", "secrets", "selectors", "shutil", "signal", "socket",
    "ssl", "subprocess", "tempfile", "threading", "time", "uuid",
}  # fmt: skip
IMPURE_NACL = {"nacl.utils", "nacl.bindings.randombytes"}
PURE_OUTSIDE = {"msgpack", "msgspec", "nacl", "tuf"}  # of tuf, what takes bytes and is told the time
PURE_INSIDE = {
    "relay/core": ("relay.core", "relay.errors", "relay.limits"),
    "cluster/core": ("cluster.core", "relay.core", "relay.errors", "relay.limits"),
}
ONLY_IN = {
    "trio_websocket": ("relay/ws.py",),
    "websockets": ("relay/gateway/websocket.py",),
    "asyncio": ("relay/journal/portal.py",),
    "aiosqlite": ("relay/journal/",),
    "sqlite3": ("relay/journal/", "relay/client/"),
}
ENTRY_POINTS = {"cluster.cli"}  # the console script; whatever can be run as `python -m …` is one too
NOT_WIRED = {"relay.journal.memory": "the journal that tests compose"}
PROVIDES = {"pynacl": "nacl", "prometheus-client": "prometheus_client", "hdrhistogram": "hdrh"}


# --- reading the tree ----------------------------------------------------------------------------
@cache
def sources(*tops: str) -> dict[str, ast.Module]:
    """Path from the root → syntax tree, of every Python file below `tops`."""
    files = [path for top in tops for path in sorted((ROOT / top).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_bytes()) for path in files}


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@cache
def modules() -> dict[str, str]:
    """Dotted name → path of every module of the packages."""
    return {module_name(path): path for path in sources(*PACKAGES)}


def imports(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything that a file imports, submodules taken through `from x import y` too."""
    package = module_name(path) if path.endswith("__init__.py") else module_name(path).rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")
                base = ".".join([*above[: len(above) - node.level + 1], *filter(None, [base])])
            yield node.lineno, base
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def within(name: str, *tops: str) -> bool:
    return any(name == top or name.startswith(top + ".") for top in tops)


def requirement_names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=!~\[ ]", requirement)[0].lower() for requirement in requirements}


def complain(findings: list[str]) -> None:
    assert not findings, "\n" + "\n".join(sorted(set(findings)))


# --- who may import whom -------------------------------------------------------------------------
def test_relay_stands_alone() -> None:
    complain([
        f"{path}:{line} imports {name}: relay defines ports and cluster implements them; turn the arrow round"
        for path, tree in sources("relay").items()
        for line, name in imports(path, tree)
        if within(name, "cluster", "bench")
    ])  # fmt: skip


def test_the_core_is_pure() -> None:
    findings = []
    for top, inside in PURE_INSIDE.items():
        for path, tree in sources(top).items():
            for line, name in imports(path, tree):
                first = name.partition(".")[0]
                known = first in PURE_OUTSIDE or first in sys.stdlib_module_names - IMPURE
                if within(name, *IMPURE_NACL) or not (known or within(name, *inside) or name in ("relay", "cluster")):
                    findings.append(f"{path}:{line} imports {name}: the core takes bytes and events, I/O is a shell's")
            for node in ast.walk(tree):
                if isinstance(node, ast.AsyncFunctionDef | ast.Await):
                    findings.append(f"{path}:{node.lineno} awaits: the core never waits, move it to a shell")
                elif isinstance(node, ast.Attribute) and node.attr in ("generate", "SealedBox", "urandom"):
                    findings.append(f"{path}:{node.lineno} .{node.attr} is random: take the bytes as an argument")
    complain(findings)


def test_libraries_stay_behind_one_file() -> None:
    complain([
        f"{path}:{line} imports {library}: only {' and '.join(places)} may, go through it"
        for path, tree in sources(*PACKAGES).items()
        for line, name in imports(path, tree)
        for library, places in ONLY_IN.items()
        if within(name, library) and not path.startswith(places)
    ])  # fmt: skip


def test_every_library_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extra = project["optional-dependencies"]["bench"]

    def provided(requirements: list[str]) -> set[str]:
        return {PROVIDES.get(name, name.replace("-", "_")) for name in requirement_names(requirements)}

    findings = []
    for path, tree in sources(*PACKAGES).items():
        allowed = provided(project["dependencies"] + (extra if path.startswith("bench/") else []))
        allowed |= set(sys.stdlib_module_names) | set(PACKAGES)
        for line, name in imports(path, tree):
            if name.partition(".")[0] not in allowed:
                findings.append(f"{path}:{line} imports {name}: declare it in pyproject.toml and constraints.txt")
    complain(findings)


# --- no knots, no leftovers ----------------------------------------------------------------------
def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """A cycle of the graph as a path whose ends are the same; empty when there is none."""
    done: set[str] = set()

    def visit(node: str, trail: list[str]) -> list[str]:
        if node in trail:
            return [*trail[trail.index(node) :], node]
        if node in done:
            return []
        for target in sorted(graph.get(node, ())):
            if cycle := visit(target, [*trail, node]):
                return cycle
        done.add(node)
        return []

    return next((cycle for node in sorted(graph) if (cycle := visit(node, []))), [])


def import_graph(label: Callable[[str], str]) -> dict[str, set[str]]:
    graph: dict[str, set[str]] = defaultdict(set)
    for path, tree in sources(*PACKAGES).items():
        own = label(module_name(path))
        graph[own] |= {label(name) for _, name in imports(path, tree) if name in modules() and label(name) != own}
    return graph


def room(name: str) -> str:
    """A package below relay or cluster is a room; so is each file beside them. The bench is one room."""
    parts = name.split(".")
    return parts[0] if parts[0] == "bench" else ".".join(parts[:2])


def test_no_import_cycles_between_rooms() -> None:
    cycle = find_cycle({own: targets - {"relay", "cluster"} for own, targets in import_graph(room).items()})
    assert not cycle, f"a knot: {' → '.join(cycle)}; put what they share into the lower room or behind a Protocol"


def test_no_import_cycles_between_modules() -> None:
    packages = {name for name, path in modules().items() if path.endswith("/__init__.py")}
    cycle = find_cycle({own: targets - packages for own, targets in import_graph(str).items() if own not in packages})
    assert not cycle, f"a knot: {' → '.join(cycle)}; put what they share into a module of its own"


def is_entry_point(path: str) -> bool:
    return path.endswith(("__init__.py", "__main__.py")) or '__name__ == "__main__"' in (ROOT / path).read_text("utf-8")


def test_no_dead_files() -> None:
    used: set[str] = set(ENTRY_POINTS)
    for path, tree in sources(*PACKAGES).items():
        named = {name for _, name in imports(path, tree)}
        # a module may be named by a string: `python -m x.y`, a lazy command "x.y:z"
        strings = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
        named |= {string.partition(":")[0] for string in strings if isinstance(string, str)}
        used |= named - {module_name(path)}
    complain([
        f"{path} is imported by nobody: wire it up or delete it"
        for name, path in modules().items()
        if name not in used and name not in NOT_WIRED and not is_entry_point(path)
    ])  # fmt: skip


def test_every_package_is_installed() -> None:
    complain([
        f"{Path(path).parent}/__init__.py is missing: without it the wheel leaves the package out"
        for path in sources(*PACKAGES)
        if not (ROOT / path).parent.joinpath("__init__.py").exists()
    ])  # fmt: skip


# --- size and form -------------------------------------------------------------------------------
def test_files_and_functions_stay_small() -> None:
    findings = []
    for path, tree in sources(*PACKAGES, "tests").items():
        lines = (ROOT / path).read_text("utf-8").count("\n")
        if lines > MAX_FILE:
            findings.append(f"{path} has {lines} lines: split it by what its parts are about (≤ {MAX_FILE})")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION:
                    where = f"{path}:{node.lineno} {node.name}"
                    findings.append(f"{where} has {length} lines: name its steps (≤ {MAX_FUNCTION})")
    complain(findings)


def test_annotations_are_lazy() -> None:
    findings = []
    for path, tree in sources(*PACKAGES, "tests").items():
        future = any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body)
        kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.AnnAssign
        if not future and any(isinstance(node, kinds) for node in ast.walk(tree)):
            findings.append(f"{path}: begin with `from __future__ import annotations`")
    complain(findings)


def test_every_tag_is_unique() -> None:
    findings = []
    for path, tree in sources(*PACKAGES).items():
        tags: Counter[object] = Counter(
            keyword.value.value
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
            for keyword in node.keywords
            if keyword.arg == "tag" and isinstance(keyword.value, ast.Constant)
        )
        findings += [f"{path}: tag {tag} is given {n} times, one meaning each" for tag, n in tags.items() if n > 1]
    complain(findings)


# --- what must not be committed ------------------------------------------------------------------
def test_nothing_of_one_machine_is_committed() -> None:
    # written in pieces, so that this file does not find itself
    patterns = ["/wo" + "rk/", "/ho" + r"me/\w", "/ro" + r"ot/\w", "/Us" + r"ers/\w", r"/opt/(?:py" + "pi|whe" + "els)",
                "py" + r"pi\.org", "python" + r"hosted\.org", "extra-index" + "-url", "index" + "-url"]  # fmt: skip
    forbidden = re.compile("|".join(patterns))
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False).stdout.decode()
    assert listed, "git lists no files here: run this in a clone"
    findings = []
    for path in filter(None, listed.split("\0")):
        if not (ROOT / path).is_file():
            continue
        text = (ROOT / path).read_text("utf-8", errors="replace")
        for number, line in enumerate(text.splitlines(), 1):
            if match := forbidden.search(line):
                findings.append(f"{path}:{number} names {match[0]!r}: no path of a machine, no registry host")
    complain(findings)


def test_constraints_are_exact_versions() -> None:
    lines = (ROOT / "configs/constraints.txt").read_text("utf-8").splitlines()
    wrong = [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)]
    complain([f"configs/constraints.txt: {line!r} is not name==version" for line in wrong])
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = requirement_names(project["dependencies"] + extras["bench"] + extras["dev"]) - {"posthouse"}
    complain([f"configs/constraints.txt lacks {name}: add the version that was tested" for name in wanted - pinned])
