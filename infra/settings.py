"""Every setting, read once at the start from the environment (contract, appendix G).

The struct below is the whole truth: names, types, ranges, defaults; PORT in the environment is `port` here.
What makes no sense stops the start with one line that begins with the variable's name. Only the three keys
may come from elsewhere: an embedded start makes each of them once, in a file of its own in DATA_DIR.
"""

import os
import re
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from msgspec import Meta

Count = Annotated[int, Meta(ge=1, le=10_000_000)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Limit = Annotated[int, Meta(ge=0, le=2**53)]
"""Per minute; 0 is unlimited."""
Percentage = Annotated[int, Meta(ge=1, le=100)]
Origin = Annotated[str, Meta(pattern=r"^(\*|https?://[^/\s]+)$")]

LOCAL_DEVELOPMENT_KEY = "sk-admin-local-dev-change-in-production"
SHORTEST_MASTER_KEY = 16
# Long enough, but printed in somebody's tutorial: whoever tries a few gets in.
WELL_KNOWN_KEYS = frozenset(
    {
        LOCAL_DEVELOPMENT_KEY,
        "your-master-key-here",
        "your-secret-key-here",
        "your-super-secret-key",
        "change-me-in-production",
        "changeme-in-production",
        "sk-1234567890abcdef",
        "sk-your-master-key-here",
    }
)


class SettingsError(Exception):
    """A setting makes no sense. The text is one line that names the variable."""

    def __init__(self, variable: str, complaint: str) -> None:
        super().__init__(f"{variable}: {complaint}")
        self.variable = variable


class Settings(msgspec.Struct, frozen=True, kw_only=True, rename="upper"):
    """What the process runs with. An address that is None means the embedded server."""

    environment: Literal["production", "staging", "development"] = "production"
    host: Annotated[str, Meta(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535)] = 8003
    workers: Annotated[int, Meta(ge=1, le=256)] = 1
    shutdown_timeout_seconds: Seconds = 30.0
    max_body_bytes: Annotated[int, Meta(ge=1_024, le=2**31)] = 10_485_760
    ready_max_lag_seconds: Seconds = 30.0
    cors_origins: tuple[Origin, ...] = ()
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"

    data_dir: Path = Path("data")
    database_url: Annotated[str, Meta(pattern="^postgres(ql)?://")] | None = None
    database_pool_size: Annotated[int, Meta(ge=2, le=1_000)] = 10
    redis_url: Annotated[str, Meta(pattern="^(rediss?|unix)://")] | None = None
    ledger_queue_size: Count = 20_000
    ledger_batch_size: Annotated[int, Meta(ge=1, le=10_000)] = 500

    master_key: str
    encryption_keys: Annotated[tuple[str, ...], Meta(min_length=1)] = msgspec.field(name="ENCRYPTION_KEY")
    """A key ring: the first encrypts, all of them decrypt."""
    jwt_secret_key: str
    key_files: tuple[Path, ...] = ()
    """The keys' files in DATA_DIR, to be logged at the start, unlike what is in them."""
    jwt_expiration_hours: Annotated[int, Meta(ge=1, le=8_760)] = 24

    open_aliases: bool = True
    default_rpm: Limit = 60
    default_tpm: Limit = 60_000
    default_output_tokens: Count = 1_000
    chore_seconds: Seconds = 15.0
    """Between two rounds of what is done by the clock: refills, expirations, calls that were interrupted."""
    purge_seconds: Seconds = 600.0
    prompts_kept_days: Annotated[int, Meta(ge=1, le=3_650)] = 30
    job_expiry_hours: Annotated[int, Meta(ge=1, le=87_600)] = 24
    credits_low_thresholds: tuple[Percentage, ...] = (20, 5)
    llm_timeout_seconds: Seconds = 120.0
    llm_transport: Literal["auto", "litellm"] = "auto"
    stream_on_disconnect: Literal["cancel", "drain"] = "cancel"
    webhook_allow_private: bool = False

    @property
    def embedded(self) -> bool:
        """Whether PostgreSQL is the embedded one."""
        return self.database_url is None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Read and check all settings, and make the keys that an embedded start lacks.

        Args:
            environment: `os.environ`, or what a test puts in its place. An empty variable counts as unset.

        Raises:
            SettingsError: a variable is missing, unreadable or unsafe.
        """
        given = {name: value.strip() for name, value in environment.items() if value.strip()}
        keys, files = _keys(given)
        given |= keys
        fields = {field.encode_name: field.type for field in msgspec.structs.fields(cls)}
        spelled = {name: _spell(given[name], kind) for name, kind in fields.items() if name in given}
        return _convert(spelled | {"KEY_FILES": files}, cls)

    def __repr__(self) -> str:
        """Three harmless fields: keys are keys, addresses hold passwords, and tracebacks get logged."""
        return f"Settings(environment={self.environment!r}, host={self.host!r}, port={self.port!r}, ...)"


def _spell(value: str, kind: Any) -> Any:
    """Write lists as lists and known words in lower case, as the types expect them."""
    if get_origin(kind) is Annotated:
        return _spell(value, get_args(kind)[0])
    if get_origin(kind) is tuple:
        return [part.strip() for part in value.split(",") if part.strip()]
    return value.lower() if get_origin(kind) is Literal else value


def _convert(given: dict[str, Any], kind: type[Settings]) -> Settings:
    try:
        return msgspec.convert(given, kind, strict=False, dec_hook=lambda wanted, value: wanted(value))
    except msgspec.ValidationError as error:
        # The value is not repeated: an address may hold a password.
        complaint, _, place = str(error).partition(" - at `$.")
        variable = re.split(r"[`\[.]", place)[0]
        raise SettingsError(variable, f"{complaint[:1].lower()}{complaint[1:]}") from None


def _keys(given: Mapping[str, str]) -> tuple[dict[str, str], list[Path]]:
    """The three keys, from the environment or else from DATA_DIR, and the files of the latter."""
    development = given.get("ENVIRONMENT", "").lower() == "development"
    external = "DATABASE_URL" in given
    if "MASTER_KEY" in given:
        _require_sound_master_key(given["MASTER_KEY"], development=development, external=external)
    keys: dict[str, str] = {}
    files: list[Path] = []
    for variable, prefix in (("MASTER_KEY", "sk-admin-"), ("ENCRYPTION_KEY", ""), ("JWT_SECRET_KEY", "")):
        if variable in given:
            keys[variable] = given[variable]
            continue
        # An external database is a deployment: all of its machines need the same keys, so none makes its own.
        if external and not development:
            raise SettingsError(variable, "must be set when DATABASE_URL is (unless ENVIRONMENT=development)")
        file = Path(given.get("DATA_DIR", "data")) / variable.lower().replace("_", "-")
        keys[variable] = _kept_key(file, prefix)
        files.append(file)
    return keys, files


def _require_sound_master_key(key: str, *, development: bool, external: bool) -> None:
    if re.search(r"\s", key):
        raise SettingsError("MASTER_KEY", "may hold no white space, since it travels in a Bearer header")
    if development:
        return
    if key == LOCAL_DEVELOPMENT_KEY:
        raise SettingsError("MASTER_KEY", "is the published one, accepted only with ENVIRONMENT=development")
    if external and key.lower() in WELL_KNOWN_KEYS:
        raise SettingsError("MASTER_KEY", "is a well-known key; choose another one")
    if external and len(key) < SHORTEST_MASTER_KEY:
        raise SettingsError("MASTER_KEY", f"must have at least {SHORTEST_MASTER_KEY} characters")


def _kept_key(path: Path, prefix: str) -> str:
    """Read the key that the file keeps, and make both if need be, whoever else is doing so just now."""
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _make_key(path, prefix)
        return path.read_text().strip()
    except OSError as error:
        raise SettingsError("DATA_DIR", f"cannot keep {path}: {error.strerror}") from error


def _make_key(path: Path, prefix: str) -> None:
    """Write the key aside and link it into place: a file appears whole, and the first one stays."""
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=".key-")  # mkstemp's mode is 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(prefix + secrets.token_urlsafe(36) + "\n")
            file.flush()
            os.fsync(descriptor)
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        Path(draft).unlink()
