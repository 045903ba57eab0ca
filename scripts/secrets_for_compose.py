"""Makes the secrets that docker-compose.yml reads, once (`make secrets`): a random password for Redis, and a file for
the address that alerts are sent to.

They lie in deploy/secrets/, which git and the images leave out. Only the owner can enter the folder; the files are
readable, because a container reads them as a user of its own. Standard library only.
"""

from __future__ import annotations

import secrets
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "deploy" / "secrets"
BYTES = 32
# A name that never exists: deliveries fail, and Alertmanager says so, until another address is entered.
NOWHERE = "http://alerts.invalid/"


def contents(password: str) -> dict[str, str]:
    """Content of each file."""
    return {
        "redis_password": password,
        "redis.conf": f"requirepass {password}\n",
        "store_url": f"redis://:{password}@redis:6379/0\n",
        "alert_url": NOWHERE,
    }


def make(folder: Path) -> bool:
    """Write the files that are missing, for the password that is there; return whether any was. None is overwritten."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    known = folder / "redis_password"
    password = known.read_text().strip() if known.is_file() else secrets.token_hex(BYTES)
    written = False
    for name, text in contents(password).items():
        file = folder / name
        if file.is_dir():
            file.rmdir()  # Docker makes a folder of a file that it is to mount and that is missing
        if not file.exists():
            file.write_text(text)
            written = True
        file.chmod(0o644)
    return written


def main() -> int:
    """Make the secrets; returns the exit code."""
    try:
        made = make(FOLDER)
    except OSError as error:
        print(f"[secrets] {error.filename or FOLDER}: {error.strerror}", file=sys.stderr)
        return 1
    print(f"[secrets] {'made in' if made else 'are there already:'} {FOLDER}")
    if (FOLDER / "alert_url").read_text() == NOWHERE:
        print(f"[secrets] alerts go nowhere until {FOLDER / 'alert_url'} holds the address of a webhook")
    return 0


if __name__ == "__main__":
    sys.exit(main())
