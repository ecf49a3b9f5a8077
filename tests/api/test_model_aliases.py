"""Aliases over HTTP: what a name can be given, who sees what of it, and what it costs."""

import httpx

from tests.api.conftest import make_alias
from tests.provider import FakeProvider


def test_an_alias_is_made_with_its_price(admin: httpx.Client, provider: FakeProvider) -> None:
    name = make_alias(admin, provider)
    assert name
