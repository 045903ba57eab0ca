"""A whole service on parts made in memory, as a program: `python -m testing.fake_server PORT STORE
DELAY_MS …`.

For tests that must kill a real process, and for measuring what the service itself costs a request.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import cast

from service.http.server import serve
from service.observability.logs import configure_logging
from service.service import Service
from service.settings import load_settings
from testing.fake_parts import TableEncoder, make_parts, opener
from testing.fake_writer import make_generative_parts


def main() -> None:
    """Serve the fake artifacts until the process is told to stop."""
    port, store, hold = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    given = dict(argument.split("=", 1) for argument in sys.argv[4:])
    poison = given.pop("poison", None)  # a row on which the encoder fails
    settings = load_settings(artifacts=(Path("fake"), Path("fake-writer")), port=port, store=store, **given)
    configure_logging(settings.log_level, settings.log_format)
    parts = make_parts()
    encoder = cast(TableEncoder, parts.encoder)
    encoder.hold = hold
    encoder.poison = None if poison is None else int(poison)
    service = Service(settings, open_artifact=opener(parts, make_generative_parts(parts)))  # type: ignore[arg-type]
    serve(service, lambda url: print(json.dumps({"url": url, "admin_key": service.start_key}), flush=True))


if __name__ == "__main__":
    main()
