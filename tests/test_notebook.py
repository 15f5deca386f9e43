"""The notebook of the examples: its cells are those of its source, it was executed, and its code runs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "notebook"
NOTEBOOK: dict[str, Any] = json.loads((FOLDER / "tour.ipynb").read_text(encoding="utf-8"))
SIZE = "EVENTS, READERS, ARTICLES, TOPICS = 24_000, 240, 120, 5"


def code_cells() -> list[dict[str, Any]]:
    return [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_has_the_cells_of_its_source() -> None:
    spec = importlib.util.spec_from_file_location("make_notebook", FOLDER / "make_notebook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in NOTEBOOK["cells"]]
    assert cells == module.read_cells((FOLDER / "tour.py").read_text(encoding="utf-8")), (
        "run python examples/notebook/make_notebook.py"
    )


def test_the_notebook_was_executed_without_errors_and_warnings() -> None:
    counts = [cell["execution_count"] for cell in code_cells()]
    assert counts == list(range(1, len(counts) + 1))
    outputs = [output for cell in code_cells() for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    tables = [output for output in outputs if "text/html" in output.get("data", {})]
    assert len(tables) > 5
    assert "better" in json.dumps(tables)
    assert len((FOLDER / "tour.ipynb").read_bytes()) < 100_000


def test_the_cells_of_the_notebook_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = "\n".join("".join(cell["source"]) for cell in code_cells())
    assert SIZE in source
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source.replace(SIZE, SIZE.replace("24_000", "1_200")), "tour.ipynb", "exec"), namespace)
    assert namespace["own"].metrics["auc"].defined
