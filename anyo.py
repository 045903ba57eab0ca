"""The `anyo` command and the Python API.

The command hands on to `python -m training`, `python -m index` or `python -m service`; `anyo.load(folder)` gives an
artifact to Python programs. Nothing is imported until it is needed, so that `anyo --help` answers at once.
"""

from __future__ import annotations

import runpy
import sys
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
  anyo recommend ARTIFACT "TITLE"…              answer once, no server    (python -m service recommend)
  anyo compare RECIPE|ARTIFACT… --out DIR       train, measure, report    (python -m training compare)
  anyo serve ARTIFACT… [--port 8000]            answer POST /recommend    (python -m service)
  anyo index COMMAND …                          build and inspect indexes (python -m index)
  anyo load histories DIR                       users into the store      (python -m service load)
  anyo export recommendations ARTIFACT …        for all users, to parquet (python -m service export)
  anyo doctor                                   look at this machine      (python -m service doctor)
  anyo completion bash|zsh|fish                 words for the Tab key

Every other command goes to `python -m training`: `anyo training --help` lists them. Each has its own --help.
"""
OF_SERVICE = ("recommend", "doctor", "pull", "key", "export", "load")
OF_TRAINING = (
    "train", "evaluate", "compare", "recipes", "data", "floors", "rewrite", "reweigh", "teacher", "withhold",
    "card", "push", "tune", "update", "choose",
)  # fmt: skip
COMMANDS = ("serve", *OF_SERVICE, *OF_TRAINING, "index", "service", "training", "completion")
"""Every first word, so that a wrong one is told before anything is imported; a test holds it to the programs."""
NOT_ALLOWED = 2


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
    if command in OF_SERVICE:
        return "service", arguments
    if command in ("index", "training"):
        return command, rest
    return "training", arguments


def completion(arguments: list[str]) -> str:
    """Return a script for a shell that completes commands, options and files; exits for any other."""
    if arguments not in (["bash"], ["zsh"], ["fish"]):
        print(f"error: completion is for one of bash, zsh and fish, given: {' '.join(arguments) or 'nothing'}",
              file=sys.stderr)  # fmt: skip
        sys.exit(NOT_ALLOWED)
    words = _words()
    if arguments == ["fish"]:
        first = f"complete -c anyo -n __fish_use_subcommand -a '{' '.join(COMMANDS)}'"
        more = [
            f"complete -c anyo -n '__fish_seen_subcommand_from {command}' -a '{' '.join(each)}'"
            for command, each in words.items()
        ]
        return "\n".join([first, *more])
    cases = "".join(f"    {command}) words='{' '.join(each)}' ;;\n" for command, each in words.items())
    start = "autoload -U +X bashcompinit && bashcompinit\n" if arguments == ["zsh"] else ""
    return (
        f"{start}_anyo() {{\n  local words=''\n  if [ \"$COMP_CWORD\" = 1 ]; then words='{' '.join(COMMANDS)}'\n"
        f'  else case "${{COMP_WORDS[1]}}" in\n{cases}  esac; fi\n'
        '  COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))\n}\n'
        "complete -o default -F _anyo anyo"
    )


def _words() -> dict[str, list[str]]:
    """Command → what may follow it: options, and the commands of a group."""
    import typer

    import index.cli
    import service.admin_cli
    import service.cli
    import service.local_cli
    import training.cli

    found: dict[str, list[str]] = {}
    for group in (training.cli.app, service.admin_cli.app, service.local_cli.app):
        found |= {name: _after(inner) for name, inner in typer.main.get_command(group).commands.items()}  # type: ignore[attr-defined]
    return found | {
        "serve": _after(typer.main.get_command(service.cli.app)),
        "index": _after(typer.main.get_command(index.cli.app)),
    }


def _after(command: Any) -> list[str]:
    options = [each for parameter in command.params for each in parameter.opts if each.startswith("--")]
    return [*getattr(command, "commands", ()), *options, "--help"]


def main() -> None:
    """Run the command line `anyo …`."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(OVERVIEW)
        return
    if arguments[0] == "--version":
        print(f"anyo {version('anyo')}")
        return
    if arguments[0] not in COMMANDS:
        near = get_close_matches(arguments[0], COMMANDS, 1)
        meant = f"; did you mean '{near[0]}'?" if near else f"; there are {', '.join(COMMANDS)}"
        print(f"error: no command {arguments[0]!r}{meant}", file=sys.stderr)
        sys.exit(NOT_ALLOWED)
    if arguments[0] == "completion":
        print(completion(arguments[1:]))
        return
    module, rest = route(arguments)
    sys.argv = [f"anyo {module}", *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
