"""Settings: where they come from, what is refused, and that each is documented."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from service.settings import PREFIX, Settings, SettingsError, load_settings


def test_the_command_line_overrules_the_environment_which_overrules_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYO_PORT", "9001")
    monkeypatch.setenv("ANYO_ARTIFACTS", "artifacts/a, artifacts/b")
    settings = load_settings(port=None, deadline_ms=700)
    assert (settings.port, settings.deadline_ms, settings.host) == (9001, 700, "127.0.0.1")
    assert settings.artifacts == (Path("artifacts/a"), Path("artifacts/b"))
    assert load_settings(port=9002, artifacts=(Path("c"),)).artifacts == (Path("c"),)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("ANYO_MAX_BATCH_TOKEN", "5", "unknown variable ANYO_MAX_BATCH_TOKEN; known are ANYO_ADMIN_KEYS"),
        ("ANYO_PORT", "http", "ANYO_PORT"),
        ("ANYO_PORT", "70000", "65535"),
        ("ANYO_DEVICE", "gpu", "ANYO_DEVICE"),
        ("ANYO_LOG_LEVEL", "loud", "'debug', 'info'"),
        ("ANYO_MAX_BATCH_PADDING", "1.0", "less than 1"),
        ("ANYO_MAX_QUEUED_TOKENS", "100", "max_batch_tokens (2048)"),
        ("ANYO_STORE_TIMEOUT_MS", "20000", "deadline_ms (10000)"),
        ("ANYO_DEVICE", "cuda:\u0663", "ANYO_DEVICE"),
        ("anyo_port", "9001", "ANYO_PORT and anyo_port are one setting"),
        ("ANYO_ARTIFACTS_ROOT", "/no/such/folder", "there is no such folder"),
        ("ANYO_ARTIFACTS_ROOT", " artifacts", "a blank"),
        ("ANYO_FEEDBACK_LOG", "log\t.jsonl", "a control character"),
        ("ANYO_API_KEYS", hashlib.sha256(b"").hexdigest(), "the hash of an empty key"),
        ("ANYO_ADMIN_KEYS", "me:" + hashlib.sha256(b"").hexdigest(), "the hash of an empty key"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv("ANYO_PORT", "9000")
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=re.escape(says)):
        load_settings()


@pytest.mark.parametrize("name", ["artifacts_root", "feedback_log"])
def test_an_empty_path_is_no_path(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """It would be the working folder: everything in it could be loaded by name."""
    monkeypatch.setenv(PREFIX + name.upper(), "")
    assert getattr(load_settings(), name) is None


def test_no_key_opens_both_the_api_and_administration() -> None:
    shared, own = hashlib.sha256(b"one").hexdigest(), hashlib.sha256(b"two").hexdigest()
    assert load_settings(api_keys=f"a:{shared}", admin_keys=own).admin_keys == (own,)
    with pytest.raises(SettingsError, match="both api_keys and admin_keys") as refused:
        load_settings(api_keys=f"a:{shared}", admin_keys=f"{own},b:{shared}")
    assert shared not in str(refused.value)


def test_eight_bits_are_for_the_processor() -> None:
    assert load_settings(precision="int8").precision == "int8"
    with pytest.raises(SettingsError, match="precision int8 runs on the cpu only, and device is 'cuda:1'; use auto"):
        load_settings(precision="int8", device="cuda:1")


def test_every_setting_has_its_row(repository: Path) -> None:
    rows = {}
    for line in (repository / "docs" / "reference" / "settings.md").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"| `{PREFIX}"):
            variable, default, consequence = (cell.strip() for cell in line.strip("| ").split(" | "))
            rows[variable.strip("`")] = (default, consequence)
    expected = {}
    for name, field in Settings.model_fields.items():
        default = "(none)" if field.default in ((), "") else field.default
        expected[PREFIX + name.upper()] = (f"`{default}`", field.description)
    assert rows == expected
