"""The graph of imports of our own source files, read from the text: nothing is imported to look at it."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
Graph = Mapping[str, set[str]]


def imports(source: str, module: str = "", is_package: bool = False) -> Iterator[tuple[int, str]]:
    """Yield (line, full module name) of every import in `source`: inside functions, relative ones and
    `importlib.import_module("…")` too. `module` is the dotted name of the file, for relative imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")
            keep = len(parents) - node.level + is_package
            base = [*parents[:keep], *filter(None, [node.module])] if node.level else [node.module or ""]
            yield node.lineno, ".".join(base)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from ((node.lineno, str(name.value)) for name in node.args if isinstance(name, ast.Constant))


def dotted(path: Path) -> str:
    """Return the module name of a source file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def late_imports(source: str) -> list[int]:
    """Return the lines of import statements inside functions, each once."""
    return sorted({
        found.lineno
        for function in ast.walk(ast.parse(source))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for found in ast.walk(function)
        if isinstance(found, ast.Import | ast.ImportFrom)
    })  # fmt: skip


def import_graph(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Return which modules each module imports, of `sources` (text by module name) only.

    Imports inside functions and below `TYPE_CHECKING` count. `from package import name` is an import of the module
    `package.name` where there is one, else of `package`.
    """
    return {
        module: {found for name in _names(source) if (found := _module(name, sources)) not in (None, module)}
        for module, source in sources.items()
    }


def _names(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _module(name: str, sources: Mapping[str, str]) -> str | None:
    parent = name.rpartition(".")[0]
    return name if name in sources else parent if parent in sources else None


def room(module: str) -> str:
    """Return the room of a module: its folder directly below its package, or itself where it lies in the package."""
    return ".".join(module.split(".")[:2])


def circles(graph: Graph) -> list[list[str]]:
    """Return every circle: sorted groups of nodes that reach each other (Tarjan's strongly connected components)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        number[node] = lowest[node] = len(number)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in number:
                visit(other)
                lowest[node] = min(lowest[node], lowest[other])
            elif other in stack:
                lowest[node] = min(lowest[node], number[other])
        if lowest[node] == number[node]:
            at = stack.index(node)
            group, stack[at:] = stack[at:], []
            if len(group) > 1:
                found.append(sorted(group))

    for node in graph:
        if node not in number:
            visit(node)
    return sorted(found)


def between_rooms(graph: Graph) -> dict[str, set[str]]:
    """Return which rooms import which, of a graph of modules."""
    rooms: dict[str, set[str]] = {}
    for module, imported in graph.items():
        here = room(module)
        rooms.setdefault(here, set()).update({room(other) for other in imported} - {here})
    return rooms


def floor_violations(graph: Graph, floors: Sequence[frozenset[str]], package: str) -> list[tuple[str, str]]:
    """Return the imports (importer, imported) that do not go down but up, or to another room of the floor."""
    level = {f"{package}.{name}" if name else package: at for at, names in enumerate(floors) for name in names}
    return sorted(
        (module, other)
        for module, imported in graph.items()
        for other in imported
        if room(module) in level and room(other) in level
        if room(module) != room(other) and level[room(module)] >= level[room(other)]
    )
