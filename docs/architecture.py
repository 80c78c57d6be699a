"""Draw in architecture.md how the parts import each other: `python docs/architecture.py`.

Each folder, and each file beside the folders, is a box. Arrows lead to what is imported; where one
can be reached over others anyway, it is left out.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- drawn by docs/architecture.py -->\n", "<!-- end -->"
# What of a folder others build upon, and its rest upon them.
BELOW = {"evaluation.metrics": "evaluation.metrics",
         **dict.fromkeys((f"training.{name}" for name in (
             "losses", "muon", "optimizers", "schedulers", "ema", "signals")), "parts of training")}


def part_of(module: str) -> str:
    """Return the box of a module: "data" of cvkit.data.images."""
    inner = module.removeprefix("cvkit").removeprefix(".")
    return BELOW.get(inner, inner.split(".")[0])


def imported(path: Path) -> Iterator[str]:
    """Yield the modules of cvkit that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "cvkit":
            # Of a package it may be a module: from cvkit.training import losses.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("cvkit."))


def read() -> dict[str, set[str]]:
    """Return what each part imports, tools included."""
    paths = {path: part_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
             for path in (ROOT / "cvkit").rglob("*.py") if path != ROOT / "cvkit" / "__init__.py"}
    paths |= dict.fromkeys((ROOT / "tools").glob("*.py"), "tools")
    graph: dict[str, set[str]] = {part: set() for part in paths.values()}
    for path, part in paths.items():
        for name in imported(path):
            # A name in a module, or a module.
            there = BELOW.get(name.removeprefix("cvkit.").rpartition(".")[0]) or part_of(name)
            if there in graph and there != part:
                graph[part].add(there)
    return graph


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the arrows that no path of others replaces."""
    def reached(part: str) -> set[str]:
        return graph[part].union(*map(reached, graph[part]))

    return {part: there - set().union(*map(reached, there)) for part, there in graph.items()}


def drawn() -> str:
    """Return the picture as Mermaid."""
    graph = reduced(read())
    box = {part: part if re.fullmatch(r"[a-z.]+", part) else
           f'{re.sub(r"[^a-z]+", "_", part)}["{part}"]' for part in graph}
    lines = [f"  {box[part]} --> {box[there]}"
             for part in sorted(graph) for there in sorted(graph[part])]
    return "\n".join(["```mermaid", "flowchart TD", *lines, "```", ""])


def with_picture(text: str) -> str:
    """Return a page with the picture of now between its marks."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + drawn() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(with_picture(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
