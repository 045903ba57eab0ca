"""Addresses in settings: everything in one means something, or it is refused without being repeated."""

from __future__ import annotations

import pytest

from service.settings import SettingsError, load_settings
from service.settings.addresses import AddressError, StoreUrlError, check_host, check_origin, check_receiver
from service.settings.store_kinds import parse_store_url, shown
from service.settings.store_kinds.redis import RedisUrl, parse_cache_url
from service.settings.store_kinds.sqlite import SqliteUrl

READ = {
    "sqlite:///data/h.sqlite": SqliteUrl("data/h.sqlite"),
    "sqlite:////srv/h.sqlite": SqliteUrl("/srv/h.sqlite"),
    "sqlite:///:memory:": SqliteUrl(":memory:"),
    "redis://h": RedisUrl("redis", host="h"),
    "redis://h/": RedisUrl("redis", host="h"),
    "redis://my_redis-1.example.:7000/3": RedisUrl("redis", host="my_redis-1.example.", port=7000, db=3),
    "redis://h?db=2": RedisUrl("redis", host="h", db=2),
    "redis://[::1]:6380/1": RedisUrl("redis", host="::1", port=6380, db=1),
    "redis://:p%40s%2Fs%3F%23@h/1": RedisUrl("redis", host="h", db=1, password="p@s/s?#"),
    "redis://me:a:b@h": RedisUrl("redis", host="h", user="me", password="a:b"),
    "unix:///run/r.sock": RedisUrl("unix", socket="/run/r.sock"),
    "unix://:pw@/run/my%20r.sock?db=4": RedisUrl("unix", socket="/run/my r.sock", db=4, password="pw"),
    "rediss://h?ssl_cert_reqs=none&ssl_check_hostname=False": RedisUrl(
        "rediss", host="h", tls={"ssl_cert_reqs": "none", "ssl_check_hostname": False}
    ),
}


@pytest.mark.parametrize(("url", "expected"), READ.items(), ids=READ)
def test_a_url_is_read_part_by_part(url: str, expected: RedisUrl | SqliteUrl) -> None:
    found = parse_store_url(url)
    assert found == expected
    assert parse_store_url(str(found)).__class__ is found.__class__
    if isinstance(found, RedisUrl) and isinstance(expected, RedisUrl):
        assert (found.password, found.tls) == (expected.password, expected.tls)
        assert parse_cache_url(url) == found
        if found.password:
            assert found.password not in str(found) + repr(found)


S = "s3cretWord"
WRONG = {
    "redis://h/production": "database is a number",
    "redis://h/-1": "database is a number",
    "redis://h/01": "database is a number",
    "redis://h/+1": "database is a number",
    "redis://h/1.0": "database is a number",
    "redis://h/0/1": "database is a number",
    "redis://h/2147483648": "database is a number",
    "redis://h/%31": "database is a number",
    "redis://h/0?db=1": "one of them is enough",
    "redis://h?db=1&db=1": "twice",
    "redis://h?db=": "database is a number",
    "redis://h?db": "NAME=VALUE",
    "redis://h?socket_timeout=1": "sets socket_timeout",
    "redis://h?max_connections=1": "ANYO_REDIS_",
    f"redis://h?password={S}": "before the host",
    f"redis://h?{S}=1": "(unreadable)",
    "redis://h?ssl_cert_reqs=none": "only rediss://",
    "rediss://h?ssl_cert_reqs=maybe": "none of required, optional, none",
    "rediss://h?ssl_check_hostname=1": "none of true, false",
    "rediss://h?ssl_ca_certs=": "is empty",
    "rediss://h?ssl_keyfile=k": "without ssl_certfile",
    "redis://": "no host",
    "redis:///0": "no host",
    "redis://h:0": "port",
    "redis://h:65536": "port",
    "redis://h:": "port",
    "redis://h:+6379": "port",
    f"redis://me:{S}": "port",
    "redis://h h": "blank",
    "redis://h/0 ": "blank",
    "redis://h/0\n": "control character",
    "redis://h\t/0": "control character",
    f"redis://:{S}#x@h": "%23",
    f"redis://:{S}/x@h": "%2F",
    f"redis://:{S}?x@h": "%3F",
    f"redis://:{S}%zz@h": "two hexadecimal digits",
    f"redis://:{S}%ff@h": "UTF-8",
    "redis://h#0": "%23",
    "redis://[::1/0": "[IPv6]",
    "redis://[h]x:1": "[IPv6]",
    "redis://h_/ü": "database",
    "redis://127.1": "host",
    "redis://-h": "host",
    "unix://run/r.sock": "unix:///run/redis.sock",
    "unix://": "unix:///run/redis.sock",
    "unix:///r.sock?db=x": "database is a number",
    "REDIS://h": "not known",
    "redis:h": "not known",
    f"mysql://me:{S}@h/db": "not known",
    S: "not known",
    "": "not known",
    "sqlite:h.sqlite": "names no file",
    "sqlite://h.sqlite": "names no file",
    "sqlite:///": "names no file",
    "sqlite:///data/": "names no file",
    "sqlite:///:memory": "names no file",
    "sqlite:///file:h.sqlite": "names no file",
    "sqlite:///h.sqlite?mode=ro": "no parameters",
    "sqlite:///~/h.sqlite": "'~'",
    "sqlite:///h.sqlite ": "blank",
}


@pytest.mark.parametrize(("url", "says"), WRONG.items())
def test_a_url_that_a_library_would_forgive_is_refused_and_not_repeated(url: str, says: str) -> None:
    with pytest.raises(StoreUrlError) as refusal:
        parse_store_url(url)
    assert says in str(refusal.value) and S not in str(refusal.value)
    with pytest.raises(SettingsError, match="ANYO_STORE") as told:
        load_settings(store=url)
    assert S not in str(told.value) and "\n" not in str(told.value)
    assert S not in shown(url)
    if url:
        with pytest.raises(SettingsError, match="ANYO_CACHE") as told:
            load_settings(cache=url)
        assert S not in str(told.value)


def test_a_cache_is_a_redis() -> None:
    with pytest.raises(SettingsError, match="known are redis://HOST:PORT/DB"):
        load_settings(cache="sqlite:///h.sqlite")


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::", "::1", "localhost", "my-host.example"])
def test_hosts(host: str) -> None:
    assert check_host(host) == load_settings(host=host).host == host


@pytest.mark.parametrize(
    "host", ["", "0", "127.1", "0x7f.1", "127.0.0.1:80", "[::1]", "a b", "http://h", "h/x", "1.2.3"]
)
def test_hosts_that_a_library_would_read_as_another(host: str) -> None:
    with pytest.raises(SettingsError, match="ANYO_HOST"):
        load_settings(host=host)


@pytest.mark.parametrize("origin", ["https://shop.example", "http://localhost:3000", "http://[::1]:8080"])
def test_origins(origin: str) -> None:
    assert check_origin(origin) == load_settings(cors_origins=(origin,)).cors_origins[0] == origin


@pytest.mark.parametrize(
    "origin",
    [
        "https://shop.example/", "https://shop.example:443", "http://shop.example:80", "https://Shop.example",
        "https://shop.example/a", "https://me:x@shop.example", "ftp://shop.example", "https://", "shop.example", "*",
        "null", "https://shop.example:99999", "https://*.example", "https://shop.example?x",
    ],
)  # fmt: skip
def test_origins_that_no_browser_ever_sends_are_refused(origin: str) -> None:
    with pytest.raises(SettingsError, match="ANYO_CORS_ORIGINS"):
        load_settings(cors_origins=(origin,))


def test_receivers() -> None:
    for address in ("http://collector:4318", "https://h/base", "http://[::1]:4318/"):
        assert check_receiver(address) == load_settings(otlp_endpoint=address).otlp_endpoint
    for address in (
        "collector:4318",
        "http://",
        "grpc://h:1",
        "http://h:x",
        f"http://u:{S}@h",
        "http://h?x=1",
        "http://h h",
    ):
        with pytest.raises(AddressError):
            check_receiver(address)
        with pytest.raises(SettingsError, match="ANYO_OTLP_ENDPOINT") as told:
            load_settings(otlp_endpoint=address)
        assert S not in str(told.value)


@pytest.mark.parametrize("name", ["artifacts", "api_keys", "admin_keys", "cors_origins"])
@pytest.mark.parametrize("text", [",", "a,", ",a", "a,,b", " , "])
def test_a_list_with_an_empty_entry_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    monkeypatch.setenv(f"ANYO_{name.upper()}", text)
    with pytest.raises(SettingsError, match=f"ANYO_{name.upper()}.*empty entry"):
        load_settings()
    monkeypatch.setenv(f"ANYO_{name.upper()}", " ")
    assert getattr(load_settings(), name) == ()
