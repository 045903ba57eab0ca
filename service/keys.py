"""API and admin keys: how one is made, and the one that a start on this machine makes for itself."""

from __future__ import annotations

import hashlib
import secrets

from service.settings import Settings
from service.settings.addresses import is_loopback

KEY_BYTES = 32


def new_key() -> tuple[str, str]:
    """Return a new key and the hash that goes into the settings."""
    key = "anyo_" + secrets.token_urlsafe(KEY_BYTES)
    return key, hashlib.sha256(key.encode()).hexdigest()


def key_of_this_start(settings: Settings) -> tuple[str, str] | None:
    """Return an admin key and its hash for a start without any key that only this machine reaches, else None.

    Nothing in a request tells the machine's own people from others: a proxy beside the service has a loopback address
    too, and sends whatever Host it is told to, at times without a header that says so. Who can see the console can be
    told: the key is shown there.
    """
    keyless = not settings.admin_keys and not settings.api_keys
    return new_key() if keyless and is_loopback(settings.host) else None
