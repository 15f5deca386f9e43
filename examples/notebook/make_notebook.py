"""Write tour.ipynb from tour.py and execute it: python examples/notebook/make_notebook.py

It needs nbformat, nbclient and ipykernel. Runs and prepared logs go to a temporary folder.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SOURCE, NOTEBOOK = HERE / "tour.py", HERE / "tour.ipynb"


def read_cells(text: str) -> list[tuple[str, str]]:
    """Return the cells of a script as (kind, source): cells start with ``# %%``, and text cells are comments."""
    cells = []
    for block in re.split(r"^# %%", text, flags=re.M)[1:]:
        head, _, body = block.partition("\n")
        if "[markdown]" in head:
            lines = [line.removeprefix("#").removeprefix(" ") for line in body.strip().splitlines()]
            cells.append(("markdown", "\n".join(lines)))
        else:
            cells.append(("code", body.strip()))
    return cells


def build_notebook() -> Any:
    """Return the notebook without outputs."""
    import nbformat

    build = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    cells = []
    for number, (kind, source) in enumerate(read_cells(SOURCE.read_text(encoding="utf-8"))):
        cells.append(build[kind](source, id=f"cell-{number}"))
    return nbformat.v4.new_notebook(
        cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    )


def main() -> None:
    """Write and execute the notebook."""
    import nbformat
    from nbclient import NotebookClient

    notebook = build_notebook()
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        cell.metadata.clear()  # times of the execution
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
    nbformat.write(notebook, NOTEBOOK)
    print(f"wrote {NOTEBOOK.name}")


if __name__ == "__main__":
    main()
