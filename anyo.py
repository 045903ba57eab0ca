"""The `anyo` command and the Python API.

The command hands on to `python -m training`, `python -m index` or `python -m service`; `anyo.load(folder)` gives an
artifact to Python programs. Nothing is imported until it is needed, so that `anyo --help` answers at once.
"""

from __future__ import annotations

import runpy
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modeling.inference.precision_choice import PrecisionAsked
    from service.recommend.local import LocalRecommender

__all__ = ["load", "main"]

OVERVIEW = """\
Usage: anyo COMMAND …

  anyo data import FILE… --out DIR              read your files          (python -m training data import)
  anyo data check DIR                           say what is in them      (python -m training data check)
  anyo train RECIPE --data NAME|DIR --out DIR   make an artifact          (python -m training train)
  anyo evaluate ARTIFACT                        measure it                (python -m training evaluate)
  anyo compare RECIPE|ARTIFACT… --out DIR       train, measure, report    (python -m training compare)
  anyo serve ARTIFACT… [--port 8000]            answer POST /recommend    (python -m service)
  anyo index COMMAND …                          build and inspect indexes (python -m index)

Every other command goes to `python -m training`: `anyo training --help` lists them. Each has its own --help.
"""


def load(
    folder: Path | str, *, device: str = "cpu", precision: PrecisionAsked = "fp32", download: bool = False
) -> LocalRecommender:
    """Load an artifact; `recommend` of the result answers a history as `POST /recommend` does.

    See `service.recommend.local` for arguments and errors.
    """
    from service.recommend.local import load as load_artifact

    return load_artifact(folder, device=device, precision=precision, download=download)


def route(arguments: list[str]) -> tuple[str, list[str]]:
    """Return the module to run and its arguments; what is not for `service` or `index` is for `training`."""
    command, rest = arguments[0], arguments[1:]
    if command in ("serve", "service"):
        return "service", rest
    if command in ("index", "training"):
        return command, rest
    return "training", arguments


def main() -> None:
    """Run the command line `anyo …`."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(OVERVIEW)
        return
    if arguments[0] == "--version":
        print(f"anyo {version('anyo')}")
        return
    module, rest = route(arguments)
    sys.argv = [f"anyo {module}", *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
