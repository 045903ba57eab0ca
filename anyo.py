"""The `anyo` command: hands on to `python -m training`, `python -m index` or `python -m service`.

It imports none of them until one is named, so that `anyo --help` answers at once and the halves stay apart.
"""

from __future__ import annotations

import runpy
import sys
from importlib.metadata import version

OVERVIEW = """\
Usage: anyo COMMAND …

  anyo train RECIPE --data NAME|DIR --out DIR   make an artifact          (python -m training train)
  anyo evaluate ARTIFACT                        measure it                (python -m training evaluate)
  anyo serve ARTIFACT… [--port 8000]            answer POST /recommend    (python -m service)
  anyo index COMMAND …                          build and inspect indexes (python -m index)

Every other command goes to `python -m training`: `anyo training --help` lists them. Each has its own --help.
"""


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
