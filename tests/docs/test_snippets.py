"""Every snippet of the documentation runs, or is listed here with the reason why not."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from doc_pages import BLOCKS, GUIDE, ROOT, Block, blocks, plant, write_files

import longrec
from longrec.cli import build_parser, main
from longrec.serve.client import LocalClient

QUICKSTART = GUIDE / "getting-started.md"
STORIES = [
    [QUICKSTART, GUIDE / "serving.md"],
    [GUIDE / "training.md", GUIDE / "evaluation.md", GUIDE / "tuning.md"],
]
"""Pages that continue in the folder of the page before."""
NOT_RUN = {
    ("README.md", "$ make demo"): "downloads MovieLens-1M; make demo and the tests of the demo run it",
    ("README.md", "$ longrec check"): "the commands of the quickstart, with an export that costs seconds",
    ("README.md", "import longrec"): "the client of the quickstart",
    ("docs/index.md", "$ longrec train"): "the commands of the quickstart",
    ("docs/guide/install.md", "$ python3 -m venv"): "installs packages",
    ("docs/guide/install.md", "$ make demo"): "downloads MovieLens-1M",
    ("docs/guide/training.md", "$ longrec train --resume"): "needs an interrupted run; tests/training interrupt one",
    ("docs/guide/choosing-a-model.md", "$ longrec train"): "the commands of the quickstart",
    ("docs/guide/history-length.md", "$ longrec synthetic"): "trains for a minute; tests/lengths run the command",
    ("docs/guide/diagnosis.md", "$ longrec diagnose"): "needs a tokenizer and a log; tests/semantic_ids run all three",
    ("docs/guide/python.md", "lr.export(run"): "an export costs seconds; the page on serving runs one",
    ("docs/guide/adding-a-model.md", "# mine/liking.py"): "a file; the conformance suite runs it below",
    ("docs/guide/adding-a-model.md", "from longrec.testing"): "run below",
    ("docs/guide/metrics.md", "$ longrec evaluate runs/sasrec"): "a run of the page on retrieval; tests evaluate one",
    ("docs/guide/metrics.md", "$ longrec evaluate shop.yaml"): "needs bundles; tests/evaluation run both commands",
    ("docs/guide/retrieval.md", "# mine/taste.py"): "a file; the conformance suite runs it below",
    ("docs/guide/retrieval.md", "# test_taste.py"): "run below",
    ("docs/guide/serving.md", "$ longrec export"): "the export of the quickstart, whose folder this page continues",
    ("docs/guide/serving.md", "$ curl"): "a schema with columns of the candidate; tests/serve sends such requests",
    ("docs/guide/serving.md", "$ ln"): "another bundle at the same address; tests/serve replace bundles",
    ("docs/guide/serving.md", "$ longrec serve retriever"): "a second bundle; tests/serve serve retrievers",
    ("docs/guide/serving.md", "$ longrec serve ranker"): "two bundles; tests/serve serve both",
    ("docs/guide/serving.md", "import numpy"): "needs all inputs of a program; tests/serve run the same client",
    ("docs/guide/serving.md", "import longrec"): "a server and bundles of three kinds",
    ("docs/guide/server-access.md", "$ (umask"): "writes keys; tests/serve serve with keys",
    ("docs/guide/server-access.md", "$ curl"): "a server with keys; tests/serve send such requests",
    ("docs/guide/server-access.md", "import longrec"): "a server with keys; tests/serve open such clients",
    ("docs/guide/server-access.md", "$ longrec serve"): "needs a name and a proxy; tests/serve allow names",
    ("docs/guide/events.md", "$ longrec serve"): "a bundle with tokens; tests/serve record events",
    ("docs/guide/events.md", "$ redis-cli"): "a stream at a server; tests/serve read streams",
    ("docs/guide/events.md", "$ longrec events"): "a state with events; tests/serve export them",
    ("docs/guide/events.md", "$ longrec warm"): "a bundle with states and a log; tests/serve record logs",
    ("docs/guide/events.md", "$ longrec export"): "a bundle of a source model; tests/serve record events",
    ("docs/guide/instance-tokens.md", "$ longrec compress"): "two trainings; tests/training compress and read",
    ("docs/guide/instance-tokens.md", "from longrec.store"): "reads the store of the commands above",
    ("docs/guide/from-torch-rechub.md", "# their_din.py"): "needs torch-rechub",
    ("docs/guide/pipeline.md", "$ longrec check"): "three bundles; tests/serve check and serve pipelines",
    ("docs/guide/pipeline.md", "$ longrec candidates"): "three bundles; tests/evaluation write and train",
    ("docs/guide/pipeline.md", "$ longrec trace"): "three bundles; tests/serve trace requests",
    ("docs/guide/pipeline.md", "import duckdb"): "needs a log of what was shown; tests/serve join one",
    ("docs/guide/pipeline.md", "import longrec"): "three bundles; tests/serve open pipelines",
    ("docs/guide/exploration.md", "$ longrec export"): "a run; tests/serve export an explorer and explore pages",
    ("docs/guide/exploration.md", "$ longrec offpolicy"): "a joined log; tests/serve estimate from one",
    ("examples/pipeline/README.md", "$ python make_log.py"): "three trainings and exports",
    ("examples/pipeline/README.md", "$ python show_pages.py"): "tests/exploration estimate from such a log",
    ("examples/pipeline/README.md", "$ longrec candidates"): "needs the bundles of the commands above",
    ("examples/pipeline/README.md", "$ curl"): "a server of the commands above",
    ("examples/instance_tokens/README.md", "$ longrec compress"): "needs a public log",
    ("examples/instance_tokens/README.md", "$ python study.py"): "needs a public log",
    ("examples/movielens/README.md", "$ longrec train"): "needs MovieLens-1M",
    ("examples/semantic_ids/README.md", "$ python prepare.py"): "tests/test_semantic_ids_example.py runs them, smaller",
    ("examples/semantic_ids/README.md", "$ longrec serve"): "a bundle of the commands above",
    ("examples/semantic_ids/README.md", "$ longrec tokenize"): "tables of the commands above",
    ("examples/semantic_ids/README.md", "$ longrec train"): "a run of the commands above, and another one",
}


def list_stories() -> list[list[Path]]:
    """Pages with snippets that run: those of a story together, every other page alone."""
    pages = sorted({block.page for block in BLOCKS if "run" in block.arguments})
    in_stories = {page for story in STORIES for page in story}
    return [*STORIES, *([page] for page in pages if page not in in_stories)]


class Shell:
    """Runs the snippets of a page in this process: starting Python and torch each time would take most of the suite."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch, self.printed = monkeypatch, ""
        self.namespace: dict[str, Any] = {"__name__": "__main__"}  # of the page: its Python is one session
        self.server: LocalClient | None = None

    def run(self, block: Block) -> None:
        assert block.language in ("python", "console"), f"{block}: only python and console can run"
        with contextlib.redirect_stdout(io.StringIO()) as stream:
            if block.language == "python":
                exec(compile(block.text, str(block), "exec"), self.namespace)
            for line in block.text.splitlines() if block.language == "console" else ():
                if line.startswith("$ "):
                    self.run_line(line[2:])
        self.printed = stream.getvalue()

    def run_line(self, line: str) -> None:
        arguments = shlex.split(line, comments=True)
        while "=" in arguments[0]:
            name, _, value = arguments.pop(0).partition("=")
            assert name == "PYTHONPATH", f"{line}: only PYTHONPATH may be set"
            self.monkeypatch.syspath_prepend(str(Path(value).resolve()))
        command = arguments.pop(0)
        if command == "curl":
            self.send(arguments)
        elif arguments[0] == "serve":
            args = build_parser().parse_args(arguments)
            self.close()
            self.server = longrec.client(args.bundle)
        elif arguments == ["--version"]:
            with pytest.raises(SystemExit) as ended:
                main(arguments)
            assert ended.value.code == 0
        else:
            assert command == "longrec", f"{line}: only longrec and curl can run"
            assert main(arguments) == 0, line

    def send(self, arguments: list[str]) -> None:
        assert self.server is not None, "curl before longrec serve"
        url = next(one for one in arguments if one.startswith("http://127.0.0.1:8000/"))
        print(self.server._request(urlsplit(url).path, arguments[arguments.index("-d") + 1].encode()).decode())

    def close(self) -> None:
        if self.server is not None:
            self.server.close()


@pytest.mark.parametrize("story", list_stories(), ids=lambda story: "+".join(page.stem for page in story))
def test_runnable_snippets_run(story: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shell = Shell(monkeypatch)
    if needs_log(story):
        assert "(getting-started.md)" in story[0].read_text(), f"{story[0].name}: where does events.parquet come from?"
        shell.run(next(block for block in blocks(QUICKSTART) if block.language == "python"))
    for page in story:
        write_files(page, tmp_path)
        shell.namespace = {"__name__": "__main__"}  # the Python of a page is one session
        for block in blocks(page):
            if "run" in block.arguments:
                shell.run(block)
            elif block.language == "text" and "output" in block.arguments:
                assert find_output_faults(block.text, shell.printed) == [], block
    shell.close()


def needs_log(story: list[Path]) -> bool:
    """True if the pages read ``events.parquet``, and none of their snippets writes it."""
    snippets = [block for page in story for block in blocks(page)]
    writes = any(block.language == "python" and '"events.parquet"' in block.text for block in snippets)
    return not writes and any("events.parquet" in block.text for block in snippets)


NUMBER = re.compile(r"-?\d+\.\d+|-?\d+")
INTERVAL = re.compile(rf"\[[+]?({NUMBER.pattern}), [+]?({NUMBER.pattern})\]")


def find_output_faults(shown: str, printed: str) -> list[str]:
    """Lines of a shown output that were not printed, up to differences of numbers.

    Another processor rounds otherwise, and training ends otherwise: numbers may differ by 0.005, and in a line with an
    interval by a quarter of its width, which is half of the statistical error.
    """
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    return [line for line in shown.splitlines() if not any(is_near(" ".join(line.split()), one) for one in lines)]


def is_near(shown: str, printed: str) -> bool:
    pairs = zip(NUMBER.findall(shown), NUMBER.findall(printed))
    allowed = max([0.005, *((float(high) - float(low)) / 4 for low, high in INTERVAL.findall(shown))])
    return NUMBER.sub("N", shown) == NUMBER.sub("N", printed) and all(
        abs(float(a) - float(b)) <= allowed for a, b in pairs
    )


def test_shown_numbers_are_near_the_printed_ones() -> None:
    line = "AUC 0.7110 [0.6879, 0.7352] +0.0416 [+0.0191, +0.0652] better"
    assert is_near(line, "AUC 0.7156 [0.6897, 0.7405] +0.0460 [+0.0232, +0.0666] better")
    assert not is_near(line, line.replace("0.7110", "0.6980"))
    assert not is_near(line, line.replace("better", "worse"))
    assert not is_near("loss 0.500", "loss 0.506")


def list_snippets() -> Iterator[tuple[Block, tuple[str, str] | None]]:
    """Blocks of console and python that do not run, each with its entry of NOT_RUN."""
    for block in BLOCKS:
        if block.language in ("console", "python") and "run" not in block.arguments:
            name = block.page.relative_to(ROOT).as_posix()
            keys = [key for key in NOT_RUN if key[0] == name and block.text.startswith(key[1])]
            yield block, max(keys, key=lambda key: len(key[1]), default=None)


def test_every_snippet_runs_or_says_why_not() -> None:
    snippets = list(list_snippets())
    missing = [str(block) for block, key in snippets if key is None]
    assert missing == [], "mark these blocks `run`, or give the reason in NOT_RUN"
    unused = {key for key in NOT_RUN if (ROOT / key[0]).exists()} - {key for _, key in snippets}
    assert unused == set(), "no block begins like this"


@pytest.mark.parametrize("block", [block for block, _ in list_snippets()], ids=str)
def test_snippets_that_do_not_run_are_well_formed(block: Block) -> None:
    """Commands have arguments that exist, and Python compiles."""
    if block.language == "python":
        compile(block.text, str(block), "exec")
        return
    for line in block.text.splitlines():
        if line.startswith("$ longrec "):
            parse_command(line)


def parse_command(line: str) -> None:
    arguments = shlex.split(line.removeprefix("$ longrec "), comments=True)
    with contextlib.redirect_stderr(io.StringIO()) as stream:
        try:
            _, rest = build_parser().parse_known_args(arguments)
        except SystemExit:
            raise AssertionError(f"{line}: {stream.getvalue()}") from None
    assert all("=" in one and not one.startswith("-") for one in rest), f"{line}: {rest}"


@pytest.mark.parametrize(("page", "model"), [("adding-a-model", "mine.liking"), ("retrieval", "mine.taste")])
def test_the_models_of_the_guide_keep_the_rules(
    page: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from longrec.testing import check_model

    write_files(ROOT / "docs" / "guide" / f"{page}.md", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, model, raising=False)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    check_model(model)


# ---- planted faults ----------------------------------------------------------------------------------------------


def test_a_wrong_option_is_reported() -> None:
    with pytest.raises(AssertionError, match="port"):
        parse_command("$ longrec serve shop.bundle --prt 8000 --port many")
    with pytest.raises(AssertionError, match="prt"):
        parse_command("$ longrec serve shop.bundle --prt 8000")


def test_an_output_that_moved_is_reported() -> None:
    assert find_output_faults("AUC  0.8129 [0.78, 0.84]\n", "AUC      0.8130 [0.78, 0.84]\nother\n") == []
    assert find_output_faults("AUC 0.8129\n", "AUC 0.8229\n") == ["AUC 0.8129"]


def test_a_snippet_that_fails_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = plant(tmp_path, "# T\n\n```console run\n$ longrec check nothing.yaml\n```\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match=r"nothing\.yaml"):
        Shell(monkeypatch).run(blocks(page)[0])
