"""Settings: what the environment may say, and what stops the start."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra.settings import LOCAL_DEVELOPMENT_KEY, Settings, SettingsError

EXTERNAL = {
    "DATABASE_URL": "postgresql://ledger:hunter2@db/ledger",
    "MASTER_KEY": "sk-admin-of-this-very-house",
    "ENCRYPTION_KEY": "of-this-house",
    "JWT_SECRET_KEY": "of-this-house-too",
}
KEY_FILES = ("master-key", "encryption-key", "jwt-secret-key")


def without(*names: str) -> dict[str, str]:
    return {name: value for name, value in EXTERNAL.items() if name not in names}


def test_an_empty_environment_is_an_embedded_start_with_the_documented_defaults(tmp_path: Path):
    settings = Settings.from_environment({"DATA_DIR": str(tmp_path)})

    assert settings.embedded
    assert settings.redis_url is None
    assert (settings.host, settings.port, settings.workers) == ("127.0.0.1", 8003, 1)
    assert (settings.default_rpm, settings.default_tpm) == (60, 60_000)
    assert (settings.environment, settings.log_level, settings.log_format) == ("production", "info", "json")
    assert (settings.llm_timeout_seconds, settings.default_output_tokens) == (120, 1_000)
    assert (settings.max_body_bytes, settings.ready_max_lag_seconds) == (10_485_760, 30)
    assert (settings.jwt_expiration_hours, settings.job_expiry_hours) == (24, 24)
    assert settings.credits_low_thresholds == (20, 5)
    assert settings.cors_origins == ()
    assert settings.open_aliases
    assert not settings.webhook_allow_private


def test_every_variable_is_read_in_its_own_type():
    settings = Settings.from_environment(
        EXTERNAL
        | {
            "PORT": " 9000 ",
            "LOG_LEVEL": "DEBUG",
            "OPEN_ALIASES": "False",
            "LLM_TIMEOUT_SECONDS": "2.5",
            "CREDITS_LOW_THRESHOLDS": "50, 10",
            "CORS_ORIGINS": "http://localhost:3000, https://app.example.com",
            "REDIS_URL": "redis://cache:6379/0",
            "HOST": "",
        }
    )

    assert settings.port == 9000
    assert settings.log_level == "debug"
    assert not settings.open_aliases
    assert settings.llm_timeout_seconds == 2.5
    assert settings.credits_low_thresholds == (50, 10)
    assert settings.cors_origins == ("http://localhost:3000", "https://app.example.com")
    assert settings.redis_url == "redis://cache:6379/0"
    assert settings.host == "127.0.0.1"
    assert not settings.embedded


@pytest.mark.parametrize(
    "variable,value",
    [
        ("PORT", "70000"),
        ("PORT", "http"),
        ("WORKERS", "0"),
        ("LLM_TIMEOUT_SECONDS", "nan"),
        ("OPEN_ALIASES", "perhaps"),
        ("ENVIRONMENT", "prod"),
        ("LOG_FORMAT", "xml"),
        ("CREDITS_LOW_THRESHOLDS", "20,500"),
        ("CORS_ORIGINS", "example.com"),
        ("DATABASE_URL", "mysql://root:hunter2@db/ledger"),
        ("REDIS_URL", "http://hunter2@cache"),
        ("ENCRYPTION_KEY", " , "),
        ("LLM_TRANSPORT", "carrier-pigeon"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named_in_one_line_without_its_secrets(variable: str, value: str):
    with pytest.raises(SettingsError) as refusal:
        Settings.from_environment(EXTERNAL | {variable: value})

    assert refusal.value.variable == variable
    assert str(refusal.value).startswith(f"{variable}: ")
    assert "\n" not in str(refusal.value)
    assert "hunter2" not in str(refusal.value)


def test_an_embedded_start_makes_its_keys_once_and_for_the_owner_only(tmp_path: Path):
    first = Settings.from_environment({"DATA_DIR": str(tmp_path)})
    second = Settings.from_environment({"DATA_DIR": str(tmp_path)})

    assert first == second
    assert first.key_files == tuple(tmp_path / name for name in KEY_FILES)
    assert len({first.master_key, first.jwt_secret_key, *first.encryption_keys}) == 3
    assert first.master_key.startswith("sk-admin-")
    assert {stat.S_IMODE(file.stat().st_mode) for file in first.key_files} == {0o600}
    assert sorted(KEY_FILES) == sorted(file.name for file in tmp_path.iterdir())


def test_processes_that_start_at_once_agree_on_the_keys(tmp_path: Path):
    with ThreadPoolExecutor(16) as threads:
        starts = [threads.submit(Settings.from_environment, {"DATA_DIR": str(tmp_path)}) for _ in range(64)]

    assert len({start.result().master_key for start in starts}) == 1


def test_a_key_from_the_environment_is_not_written_down(tmp_path: Path):
    settings = Settings.from_environment({"DATA_DIR": str(tmp_path), "MASTER_KEY": "sk-1234"})

    assert settings.master_key == "sk-1234"
    assert not (tmp_path / "master-key").exists()


def test_a_data_dir_that_cannot_hold_the_keys_stops_the_start(tmp_path: Path):
    (tmp_path / "occupied").write_text("a file")

    with pytest.raises(SettingsError, match=r"^DATA_DIR: "):
        Settings.from_environment({"DATA_DIR": str(tmp_path / "occupied")})


def test_the_encryption_key_may_be_a_ring_with_the_newest_first():
    settings = Settings.from_environment(EXTERNAL | {"ENCRYPTION_KEY": "new, old"})

    assert settings.encryption_keys == ("new", "old")


@pytest.mark.parametrize("variable", ["MASTER_KEY", "ENCRYPTION_KEY", "JWT_SECRET_KEY"])
def test_an_external_database_needs_every_key(variable: str):
    with pytest.raises(SettingsError) as refusal:
        Settings.from_environment(without(variable))

    assert refusal.value.variable == variable


@pytest.mark.parametrize("key", ["sk-1234", "short", "Change-Me-In-Production", LOCAL_DEVELOPMENT_KEY])
def test_an_external_database_is_not_opened_with_a_key_that_can_be_guessed(key: str):
    with pytest.raises(SettingsError, match=r"^MASTER_KEY: "):
        Settings.from_environment(EXTERNAL | {"MASTER_KEY": key})


def test_development_may_use_weak_keys_and_make_missing_ones(tmp_path: Path):
    settings = Settings.from_environment(
        without("ENCRYPTION_KEY", "JWT_SECRET_KEY")
        | {"ENVIRONMENT": "development", "MASTER_KEY": LOCAL_DEVELOPMENT_KEY, "DATA_DIR": str(tmp_path)}
    )

    assert settings.master_key == LOCAL_DEVELOPMENT_KEY
    assert settings.key_files == (tmp_path / "encryption-key", tmp_path / "jwt-secret-key")


def test_the_published_development_key_opens_no_other_environment_not_even_an_embedded_one(tmp_path: Path):
    with pytest.raises(SettingsError, match=r"^MASTER_KEY: "):
        Settings.from_environment({"DATA_DIR": str(tmp_path), "MASTER_KEY": LOCAL_DEVELOPMENT_KEY})


def test_a_master_key_with_white_space_is_refused_since_no_header_could_carry_it(tmp_path: Path):
    with pytest.raises(SettingsError, match=r"^MASTER_KEY: "):
        Settings.from_environment({"DATA_DIR": str(tmp_path), "MASTER_KEY": "two words of a key"})


def test_settings_do_not_show_their_secrets_when_printed():
    shown = repr(Settings.from_environment(EXTERNAL))

    assert not any(secret in shown for secret in (*EXTERNAL.values(), "hunter2"))
