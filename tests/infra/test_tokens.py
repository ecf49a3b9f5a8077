"""Access tokens: ours are read, everything else is refused with a typed reason."""

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.tokens import TokenRefused, Tokens, token_hash

SECRET = "a secret of more than thirty-two characters"
TOKENS = Tokens(SECRET)
NOW = int(datetime.now(UTC).timestamp())
GOOD: dict[str, Any] = {
    "user_id": "7b0f",
    "email": "ada@example.com",
    "role": "owner",
    "iat": NOW,
    "exp": NOW + 3600,
    "jti": "1",
}


def signed(claims: dict[str, Any], *, secret: str = SECRET, algorithm: str = "HS256") -> str:
    return jwt.encode(claims, secret, algorithm=algorithm)


def failure(token: str, tokens: Tokens = TOKENS) -> str:
    with pytest.raises(TokenRefused) as refused:
        tokens.read(token)
    return refused.value.failure


def test_a_token_issued_here_is_read_back() -> None:
    token, claims = TOKENS.issue("7b0f", "ada@example.com", "owner")

    assert TOKENS.read(token) == claims
    assert (claims.user_id, claims.email, claims.role) == ("7b0f", "ada@example.com", "owner")
    assert claims.exp - claims.iat == 24 * 3600


def test_two_tokens_of_one_user_differ() -> None:
    now = datetime.now(UTC)

    first, _ = TOKENS.issue("7b0f", "ada@example.com", "owner", now=now)
    second, _ = TOKENS.issue("7b0f", "ada@example.com", "owner", now=now)

    assert token_hash(first) != token_hash(second)


def test_any_jwt_library_reads_the_token_with_the_secret_as_given() -> None:
    token, claims = TOKENS.issue("7b0f", "ada@example.com", "owner")

    assert jwt.decode(token, SECRET, algorithms=["HS256"])["jti"] == claims.jti


def test_a_short_secret_signs_as_itself() -> None:
    token, _ = Tokens("sixteen letters!").issue("7b0f", "ada@example.com", "owner")
    head, _, signature = token.rpartition(".")

    digest = hmac.new(b"sixteen letters!", head.encode(), hashlib.sha256).digest()

    assert base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == signature


def test_an_expired_token_is_refused_as_expired() -> None:
    token, _ = TOKENS.issue("7b0f", "ada@example.com", "owner", now=datetime.now(UTC) - timedelta(hours=25))

    assert failure(token) == "expired"


def test_another_secret_is_refused() -> None:
    assert failure(signed(GOOD, secret="another secret of more than 32 characters")) == "invalid"


@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
def test_another_algorithm_is_refused_even_with_our_secret(algorithm: str) -> None:
    assert failure(signed(GOOD, secret=SECRET * 2, algorithm=algorithm), Tokens(SECRET * 2)) == "invalid"


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE"])
def test_a_token_without_signature_is_refused(algorithm: str) -> None:
    parts = ({"alg": algorithm, "typ": "JWT"}, GOOD)
    head, body = (base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts)

    assert failure(f"{head}.{body}.") == "invalid"


@pytest.mark.parametrize("missing", sorted(GOOD))
def test_a_token_that_lacks_a_claim_is_refused(missing: str) -> None:
    assert failure(signed({name: value for name, value in GOOD.items() if name != missing})) == "invalid"


@pytest.mark.parametrize("claim", [{"user_id": 7}, {"role": None}, {"exp": "tomorrow"}, {"exp": 1e400}])
def test_a_claim_of_the_wrong_type_is_refused(claim: dict[str, Any]) -> None:
    assert failure(signed(GOOD | claim)) == "invalid"


def test_a_changed_token_is_refused() -> None:
    head, _, signature = signed(GOOD).split(".")
    _, body, _ = signed(GOOD | {"role": "user"}).split(".")

    assert failure(f"{head}.{body}.{signature}") == "invalid"


@given(st.text(max_size=200))
def test_no_text_is_an_accident(text: str) -> None:
    assert failure(text) == "invalid"


@pytest.mark.parametrize("token", ["", ".", "..", "a.b.c", "\ud800", "x" * 100_000, "sk-1234", "é.é.é"])
def test_garbage_is_refused(token: str) -> None:
    assert failure(token) == "invalid"
    assert len(token_hash(token)) == 64
