"""Executes a notebook and keeps its outputs in it.

    python -m scripts.notebook docs/getting-started/dense-against-generative.ipynb [--set USERS=300 …]

`--set` changes assignments of the cell that is tagged `parameters`, for this execution alone: the file keeps its own
values. The kernel is the Python that runs this, in the root of the repository.
"""

from __future__ import annotations

import argparse
import ast
import copy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parent.parent
TAG = "parameters"
PATIENCE_S = 3600
"""Longest time for one cell: two trainings, at most."""


class NotebookError(Exception):
    """A notebook cannot be executed as asked; the message is one sentence, or that of the cell that failed."""


def parameters(notebook: Any) -> dict[str, Any]:
    """Return the values that the cell tagged `parameters` assigns, by name; raises NotebookError."""
    return {name: ast.literal_eval(node.value) for name, node in _assignments(_tagged(notebook)).items()}


def execute(notebook: Any, values: Mapping[str, Any]) -> Any:
    """Execute every cell in a new kernel.

    Args:
        notebook: as `nbformat.read` gives it; it is not changed.
        values: replace assignments of the cell tagged `parameters`.

    Returns:
        A copy with the outputs of this execution and the sources of `notebook`.

    Raises:
        NotebookError: a name is not assigned in that cell, or a cell fails.
    """
    running = copy.deepcopy(notebook)
    cell = _tagged(running)
    known = _assignments(cell)
    if unknown := sorted(set(values) - set(known)):
        raise NotebookError(f"parameter {unknown[0]!r} is not in the notebook; there are {', '.join(known)}")
    cell.source += "".join(f"\n{name} = {value!r}" for name, value in values.items())
    client = NotebookClient(
        running, timeout=PATIENCE_S, record_timing=False, resources={"metadata": {"path": str(ROOT)}}
    )
    kernels: Any = client.create_kernel_manager()
    kernels.transport = "ipc"  # sockets in a folder of this user, instead of ports that every user can reach
    try:
        client.execute()
    except CellExecutionError as error:
        raise NotebookError(str(error)) from None
    cell.source = _tagged(notebook).source
    return running


def _tagged(notebook: Any) -> Any:
    found = [cell for cell in notebook.cells if TAG in cell.metadata.get("tags", ())]
    if len(found) != 1:
        raise NotebookError(f"{len(found)} cells are tagged {TAG!r}; exactly one is needed")
    return found[0]


def _assignments(cell: Any) -> dict[str, ast.Assign]:
    statements = ast.parse(cell.source).body
    return {
        each.targets[0].id: each
        for each in statements
        if isinstance(each, ast.Assign) and isinstance(each.targets[0], ast.Name)
    }


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; write NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value  # a text without quotes


def main(arguments: list[str] | None = None) -> int:
    """Execute the notebook that the command line names; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.notebook", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("notebook", type=Path, help="A file .ipynb; its outputs are replaced.")
    parser.add_argument("--set", dest="values", type=_pair, action="append", default=[], help="NAME=VALUE; repeatable.")
    given = parser.parse_args(arguments)
    notebook = nbformat.read(given.notebook, as_version=4)  # type: ignore[no-untyped-call]
    try:
        done = execute(notebook, dict(given.values))
    except NotebookError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    nbformat.write(done, given.notebook)  # type: ignore[no-untyped-call]
    return 0


if __name__ == "__main__":
    sys.exit(main())
