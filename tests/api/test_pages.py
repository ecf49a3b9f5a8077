"""/docs and /redoc: they render without the internet."""

import re
from pathlib import Path

import httpx
import pytest

from api.app import described
from api.openapi import operations_of
from tests.api.browser import CHROMIUM, visit
from tests.api.conftest import Server

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
FROM_ELSEWHERE = re.compile(r"(?:src|href)\s*=\s*\"(?:https?:)?//")


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_a_page_names_nothing_that_lies_elsewhere(admin: httpx.Client, path: str) -> None:
    page = admin.get(path)
    assert page.headers["content-type"].startswith("text/html")
    assert not FROM_ELSEWHERE.search(page.text)
    for asset in re.findall(r'(?:src|href)="(/[^"]+)"', page.text):
        assert admin.get(asset).status_code == 200, asset
    assert "default-src 'self'" in page.headers["content-security-policy"]


def test_what_the_pages_are_made_of_is_all_there_is_among_their_assets(admin: httpx.Client) -> None:
    assert admin.get("/docs/assets/unknown.js").status_code == 404
    assert admin.get("/docs/assets/..%2Fopenapi.py").status_code == 404


@needs_chromium
@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_a_page_shows_every_operation_and_asks_nobody_else(server: Server, tmp_path: Path, path: str) -> None:
    page = visit(server.url + path, tmp_path)
    assert page.hosts == {"127.0.0.1"}
    assert [] == [place for _, place, _ in operations_of(described()) if place not in page.text]
