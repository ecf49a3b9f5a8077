"""Access tokens of admin users: JWT, HS256 only. None counts without its session row (`token_hash`)."""

import hashlib
import uuid
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

import jwt
import msgspec

_ALGORITHM: Final = "HS256"
# Ours have some 400 characters: longer ones are not worth a signature check.
_LONGEST: Final = 4096

Failure = Literal["expired", "invalid"]


class Claims(msgspec.Struct, frozen=True, kw_only=True):
    """What a token says; the role is a copy, the user's own record decides (contract, appendix E)."""

    user_id: str
    email: str
    role: str
    iat: int
    exp: int
    jti: str


class TokenRefused(Exception):
    """A token that was not issued here, was changed, or has expired (401)."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


class Tokens:
    """Issues and reads access tokens.

    Args:
        secret: JWT_SECRET_KEY.
        lifetime: how long a token is good for (JWT_EXPIRATION_HOURS).
    """

    def __init__(self, secret: str, lifetime: timedelta = timedelta(hours=24)) -> None:
        # HMAC itself fills a short key with zero bytes, so the signatures are those of the secret as given;
        # PyJWT warns at every token about keys shorter than these 32 bytes.
        self._key = secret.encode().ljust(32, b"\0")
        self._lifetime = lifetime

    def issue(self, user_id: str, email: str, role: str, *, now: datetime | None = None) -> tuple[str, Claims]:
        """Return a fresh token and its claims; no two tokens are equal."""
        at = now or datetime.now(UTC)
        claims = Claims(
            user_id=user_id,
            email=email,
            role=role,
            iat=int(at.timestamp()),
            exp=int((at + self._lifetime).timestamp()),
            jti=str(uuid.uuid4()),
        )
        return jwt.encode(msgspec.to_builtins(claims), self._key, algorithm=_ALGORITHM), claims

    def read(self, token: str) -> Claims:
        """Return the claims of a token that was issued here and is still good.

        Raises:
            TokenRefused: anything else, whatever was sent.
        """
        if len(token) > _LONGEST:
            raise TokenRefused("invalid")
        try:
            payload = jwt.decode(
                token,
                self._key,
                algorithms=[_ALGORITHM],
                # Clocks of several machines differ by a moment: `iat` need not be in the past.
                options={"require": list(Claims.__struct_fields__), "verify_iat": False},
            )
            return msgspec.convert(payload, Claims)
        except jwt.ExpiredSignatureError:
            raise TokenRefused("expired") from None
        except (jwt.PyJWTError, msgspec.ValidationError, ValueError):
            raise TokenRefused("invalid") from None


def token_hash(token: str) -> str:
    """Return what a session row is keyed by: the token's SHA-256 in hex."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
