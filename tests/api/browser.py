"""Pages as a reader sees them: in a headless Chromium."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,20000",  # Swagger UI writes down only what is in view
    "--virtual-time-budget=20000",
    "--dump-dom",
)

_NOT_TEXT = re.compile(r"<[^>]*>|\u200b")  # tags, and spaces that nobody sees


@dataclass(frozen=True)
class Visit:
    """A page when all of it has loaded, and where it had things fetched from."""

    text: str
    hosts: set[str]


def visit(url: str, folder: Path) -> Visit:
    """Open a page and wait until it has made itself."""
    assert CHROMIUM is not None
    record = folder / "requests.json"
    arguments = [f"--user-data-dir={folder / 'profile'}", f"--log-net-log={record}", url]
    done = subprocess.run([CHROMIUM, *FLAGS, *arguments], capture_output=True, text=True, check=True, timeout=50)
    return Visit(_NOT_TEXT.sub("", done.stdout), _hosts(record))


def _hosts(record: Path) -> set[str]:
    """The hosts that pages asked for anything; what the browser asks for on its own account has no initiator."""
    events = json.loads(record.read_text())["events"]
    asked = [event["params"] for event in events if "initiator" in event.get("params", {})]
    return {
        urlsplit(each["url"]).hostname or ""
        for each in asked
        if each["initiator"] != "not an origin" and each["url"].startswith(("http", "ws"))
    }
