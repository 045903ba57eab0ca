"""The page "Your data" works as it stands: its commands, in its order, on files with its columns."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

import training.cli
from testing.datasets import SMALL, write_dataset

PAGES = Path(__file__).resolve().parents[3] / "docs" / "getting-started"
RUN = ("import", "check", "floors", "train", "compare")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (PAGES / page).read_text(), flags=re.MULTILINE | re.DOTALL)


def write_files(page: str, items: int = 8) -> None:
    """The two files of the page with more rows of the same kind: users walk through the products."""
    products, orders = (block.splitlines() for block in blocks(page, "csv"))
    ids = ["b17", "b04", *(f"b{n}" for n in range(20, 18 + items))]
    more = [products[1].replace("b17", name).replace(",", f" {n},", 2) for n, name in enumerate(ids)]
    more = [line.replace(f"{name} {n}", name) for n, (name, line) in enumerate(zip(ids, more, strict=True))]
    rows = [
        orders[1].replace("u1", f"u{user}").replace("b17", ids[(user + step) % items]).replace("14", f"{10 + step}", 1)
        for user in range(16)
        for step in range(5)
    ]
    Path("products.csv").write_text("\n".join([products[0], *more]))
    Path("orders.csv").write_text("\n".join([*orders, *rows]))


@pytest.mark.parametrize("page", ["your-data.md", "your-data.ja.md"])
def test_the_commands_lead_from_csv_to_recommendations(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(page)
    commands = [shlex.split(line) for block in blocks(page, "sh") for line in block.splitlines()]
    chosen = [words[3:] for words in commands if words[:3] == ["python", "-m", "training"]]
    assert [next(word for word in words if word in RUN) for words in chosen if "--backbone" not in words] == [*RUN]
    for words in chosen:
        if page.endswith(".ja.md") and words[0] in ("train", "compare"):
            return  # the same commands as on the English page
        more = ["--set", "optimizer.epochs=2"] if words[0] == "train" else []
        done = CliRunner().invoke(training.cli.app, [*words, *more])
        assert done.exit_code == 0, (words, done.output)
    Path("page.py").write_text(blocks(page, "python")[0])
    runpy.run_path("page.py")
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_the_japanese_page_on_comparing_methods_has_the_same_commands() -> None:
    assert blocks("comparing-methods.ja.md", "sh") == blocks("comparing-methods.md", "sh")


def test_a_table_of_methods_takes_at_most_five_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the page, with a small data set in place of the named one."""
    monkeypatch.chdir(tmp_path)
    commands = [shlex.split(line) for line in blocks("comparing-methods.md", "sh")[0].splitlines()]
    assert len(commands) <= 5 and commands[-2][:4] == ["python", "-m", "training", "data"]
    name = commands[-2][4]
    assert name in commands[-1], "what is fetched is what is compared"
    folder = str(write_dataset(tmp_path / "small", users=24, items=20))
    words = [folder if word == name else word for word in commands[-1][3:]]
    fast = [word for setting in [*SMALL, "optimizer.epochs=1"] for word in ("--set", f"sasrec:{setting}")]
    done = CliRunner().invoke(training.cli.app, [*words, *fast])
    assert done.exit_code == 0, done.output
    report = (tmp_path / "comparison" / "report.md").read_text()
    assert {"report.json", "report.html"} <= {each.name for each in (tmp_path / "comparison").iterdir()}
    assert all(recipe in report for recipe in ("sasrec", "popularity", "item_knn"))
