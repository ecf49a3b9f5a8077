"""Imports go one way: api -> projections -> infra -> domain, and the domain knows the business only."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent
MAY_IMPORT = {
    "domain": {"domain"},
    "infra": {"domain", "infra"},
    "projections": {"domain", "infra", "projections"},
    "api": {"domain", "infra", "projections", "api"},
}
OURS = {*MAY_IMPORT, "bench", "examples", "tests"}
WORLD = {"asyncio", "io", "logging", "os", "pathlib", "random", "secrets", "socket", "subprocess", "threading", "time"}
CLOCK_AND_CHANCE = {"now", "today", "utcnow", "uuid1", "uuid4"}

FILES = [path.relative_to(HOUSE) for layer in MAY_IMPORT for path in sorted((HOUSE / layer).rglob("*.py"))]
DOMAIN = [path for path in FILES if path.parts[0] == "domain"]


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """The line and the top-level name of everything that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse((HOUSE / path).read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name.partition(".")[0]) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively; say the whole name"
            yield node.lineno, (node.module or "").partition(".")[0]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_go_one_way(path: Path) -> None:
    allowed = MAY_IMPORT[path.parts[0]]
    wrong = [f"{path}:{line} imports {name}" for line, name in imported(path) if name in OURS - allowed]
    assert not wrong


@pytest.mark.parametrize("path", DOMAIN, ids=str)
def test_the_domain_imports_the_standard_library_and_msgspec_only(path: Path) -> None:
    allowed = (sys.stdlib_module_names | {"domain", "msgspec"}) - WORLD
    wrong = [f"{path}:{line} imports {name}" for line, name in imported(path) if name not in allowed]
    assert not wrong


@pytest.mark.parametrize("path", DOMAIN, ids=str)
def test_the_domain_asks_neither_clock_nor_chance(path: Path) -> None:
    tree = list(ast.walk(ast.parse((HOUSE / path).read_text())))
    asked = [node.attr for node in tree if isinstance(node, ast.Attribute)]
    asked += [node.name for node in tree if isinstance(node, ast.alias)]
    assert not CLOCK_AND_CHANCE.intersection(asked)
