"""What the documents say is true: links lead somewhere, tables are complete, commands work as printed."""

import re
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.main import get_command

from api import cli
from infra.settings import Settings
from tests.api.serving import fresh_data_dir, serving

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path):
    links = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text())

    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_are_there(page: Path):
    named = re.findall(r"`((?:api|bench|docs|domain|examples|infra|projections|tests)/[\w./-]+)`", page.read_text())

    assert [file for file in named if not (ROOT / file).exists()] == []


def test_the_table_of_settings_is_that_of_the_server():
    page = (ROOT / "docs" / "operations.md").read_text()
    told = dict(re.findall(r"^\| `([A-Z_]+)` \| (.+?) \|", page, re.MULTILINE))
    settings = {setting.encode_name: setting for setting in msgspec.structs.fields(Settings)}
    del settings["KEY_FILES"]  # found, not set

    assert list(told) == list(settings)
    assert {name: value for name, value in told.items() if value.startswith("`")} == {
        name: f"`{spelled(setting.default)}`"
        for name, setting in settings.items()
        if setting.default not in (msgspec.NODEFAULT, None, ())
    }


def spelled(default: Any) -> str:
    """A default as one would set it."""
    match default:
        case bool():
            return str(default).lower()
        case tuple():
            return ",".join(map(str, default))
        case float():
            return f"{default:g}"
        case _:
            return str(default)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_that_are_named_exist(page: Path):
    commands: Any = get_command(cli.app)
    named = re.findall(r"saas-litellm ([a-z]+)(?: ([a-z]+)\b)?", page.read_text())

    for name, rest in named:
        assert name in commands.commands
        children = getattr(commands.commands[name], "commands", None)
        assert children is None or rest in children


def test_the_first_session_of_the_readme_works_as_it_is_printed():
    block = re.search(r"<!-- first session -->\n```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    with fresh_data_dir() as data_dir, serving(data_dir, MASTER_KEY="") as served:
        session = block[1].replace("http://localhost:8003", served.url).replace("curl ", "curl -sS --fail-with-body ")
        done = subprocess.run(
            ["bash", "-e", "-c", session], cwd=data_dir.parent, capture_output=True, text=True, check=False, timeout=50
        )

    assert (done.returncode, done.stderr) == (0, "")
    assert "data: [DONE]" in done.stdout
    assert '"credits_remaining":9,' in done.stdout
