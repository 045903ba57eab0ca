"""Addresses in messages: what may be a password is not shown, however it was written."""

from __future__ import annotations

import pytest

from service.settings import SettingsError, load_settings
from service.settings.addresses import redacted
from service.settings.store_kinds import parse_store_url, shown

SECRET = "S3CR"
READ = ("redis://u:S3CR[e@127.0.0.1:6399/0", "redis://u:S3CR@x@127.0.0.1:6399/0", "redis://:S3CR%23%2F%3F@127.0.0.1/0")
HIDING = (
    "redis://:S3CRa@127.0.0.1:6399/0?timeout=1",
    "redis://:S3CR#b@127.0.0.1:6399/0",
    "redis://:S3CR/c@127.0.0.1:6399/0",
    "redis://:S3CR?d@127.0.0.1:6399/0",
    "redis://u:S3CR%zz@127.0.0.1:6399/0",
    "redis://u:S3CR x@127.0.0.1:6399/0",
    "redis://u:S3CR\n@127.0.0.1:6399/0",
    "redis://S3CR@127.0.0.1:6399/no-number",
    "redis://127.0.0.1:6399/0?password=S3CRf",
    "redis://127.0.0.1:6399/0?S3CR=x",
    "reddis://u:S3CRg@127.0.0.1/0",
    "redis://u:S3CRh@127.0.0.1:port/0",
    "redis:/u:S3CRi@127.0.0.1/0",
    "u:S3CRj@127.0.0.1/0",
    "unix://u:S3CRk@/run/redis.sock?db=x",
    "sqlite://u:S3CRl@127.0.0.1/x",
    "https://u:S3CRm@collector:4318/x?token=S3CRn#S3CRo",
    "https://collector:4318/?token=S3CR",
)


@pytest.mark.parametrize("address", HIDING)
def test_no_setting_is_repeated_that_may_hold_a_password(address: str) -> None:
    for name in ("store", "cache", "otlp_endpoint"):
        with pytest.raises(SettingsError) as refused:
            load_settings(**{name: address})
        said = str(refused.value)
        assert SECRET not in said and f"ANYO_{name.upper()}" in said and "\n" not in said, said


def test_an_address_is_shown_without_what_may_be_secret() -> None:
    for address in READ:
        assert parse_store_url(address).password, "the last '@' ends it"  # type: ignore[union-attr]
        assert SECRET not in shown(address) + str(parse_store_url(address)) + repr(parse_store_url(address))
    for address in (*HIDING, *READ):
        if "://" in address:
            assert SECRET not in redacted(address), address
    for address, expected in (
        ("https://user:pw@host:8443/a/b?X-Signature=abc#f", "https://…"),
        ("https://user:pw@host:8443/a/b?X-Signature=abc", "https://host:8443/a/b"),
        ("https://host/a%20b/", "https://host/a%20b/"),
        ("s3://bucket/prefix", "s3://bucket/prefix"),
        ("http://[::1]:80/x", "http://[::1]:80/x"),
        ("HTTPS://user:pw@host/", "HTTPS://…"),
        ("./folder", "./folder"),
    ):
        assert redacted(address) == expected
