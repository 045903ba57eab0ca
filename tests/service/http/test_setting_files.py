"""Secrets in files: read, refused beside the plain variable, and never printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.settings import Settings, SettingsError, load_settings
from service.settings.secret_files import LARGEST, SECRETS

VALUES = {
    "store": "redis://:pass-word@redis:6379/0",
    "cache": "redis://:pass-word@redis:6379/1",
    "api_keys": "shop:" + "a" * 64,
    "admin_keys": "b" * 64,
    "qdrant_api_key": "pass-word",
}


def put(name: str, text: str | bytes, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    monkeypatch.setenv(f"ANYO_{name.upper()}_FILE", str(file))
    return file


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_file_is_as_good_as_the_variable(
    name: str, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ANYO_{name.upper()}", VALUES[name])
    expected = getattr(load_settings(), name)
    monkeypatch.setenv(f"ANYO_{name.upper()}", "")  # as compose hands on what is not set
    put(name, VALUES[name] + end, tmp_path, monkeypatch)
    assert getattr(load_settings(), name) == expected
    monkeypatch.delenv(f"ANYO_{name.upper()}")
    assert getattr(load_settings(), name) == expected != Settings.model_fields[name].default


def test_keys_may_stand_one_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put("api_keys", f"shop:{'a' * 64}\n{'b' * 64}\n", tmp_path, monkeypatch)
    assert load_settings().api_keys == (f"shop:{'a' * 64}", "b" * 64)


@pytest.mark.parametrize("name", SECRETS)
def test_both_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(name, VALUES[name], tmp_path, monkeypatch)
    monkeypatch.setenv(f"ANYO_{name.upper()}", VALUES[name])
    with pytest.raises(SettingsError, match=rf"^ANYO_{name.upper()} and ANYO_{name.upper()}_FILE are both set"):
        load_settings()


def test_the_command_line_goes_first_and_an_empty_variable_names_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put("store", VALUES["store"], tmp_path, monkeypatch)
    assert load_settings(store="sqlite:///:memory:").store == "sqlite:///:memory:"
    monkeypatch.setenv("ANYO_STORE_FILE", "")
    assert load_settings().store == Settings.model_fields["store"].default


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"x" * (LARGEST + 1), f"is larger than {LARGEST} bytes"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_file_that_holds_no_secret_stops_the_start(
    content: bytes | None, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = put("store", content or b"", tmp_path, monkeypatch)
    if content is None:
        file.unlink()
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value) == f"ANYO_STORE_FILE names {file}, which {says}"


def test_other_settings_have_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYO_PORT_FILE", "/nowhere")
    with pytest.raises(SettingsError, match=r"unknown variable ANYO_PORT_FILE; .*ANYO_STORE_FILE"):
        load_settings()
