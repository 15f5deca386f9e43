"""The documentation holds: every YAML parses, every command and link exists, every runnable snippet runs.

A fenced block says by its language and first line what is checked:

- ``yaml`` with a first line ``# NAME.yaml`` is a file of its page; ``NAME.schema.yaml`` is a schema, any other name a
  job, which finds its schema among the files of its page. Without a name it is a part of a schema.
- ``python`` with a first line ``# NAME.py`` is a file of its page, and so is ``text`` with ``# NAME.config``.
- ``console``: every ``longrec COMMAND`` must exist. ``console run`` and ``python run`` are run, in order, in one folder
  per page, which holds the files of the page. The Python of a page is one session.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from longrec.config import Strict, parse, read_yaml
from longrec.data.file_format import FileFormat, PackedCells
from longrec.data.settings import DataConfig, Source, Split
from longrec.features.schema import Condition, Feature, History, Label, Schema, TimeColumn
from longrec.training.compress_settings import CompressConfig
from longrec.training.extract import ExtractConfig
from longrec.training.job import read_job
from longrec.training.settings import EvaluateConfig, FitConfig

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
JOBS = sorted((ROOT / "examples").rglob("*.yaml"))
BASE: dict[str, Any] = {
    "user": "u",
    "item": "i",
    "time": "t",
    "label": "y",
    "features": {"u": {"kind": "id"}, "i": {"kind": "id"}},
}


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    arguments: tuple[str, ...]
    text: str

    @property
    def file(self) -> str | None:
        """The name in a first line such as ``# din.yaml``."""
        match = re.match(r"# ([\w./-]+\.(?:yaml|py|config))\n", self.text)
        return match[1] if match else None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Fenced blocks of a page, in order."""
    collected: list[Block] = []
    open_at, info, lines = 0, "", list[str]()
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if not line.startswith("```"):
            lines.append(line)
        elif open_at:
            language, *arguments = info.split() or [""]
            collected.append(Block(page, open_at, language, tuple(arguments), "\n".join(lines) + "\n"))
            open_at = 0
        else:
            open_at, info, lines = number, line[3:].strip(), []
    assert not open_at, f"{page}:{open_at}: a block is never closed"
    return collected


BLOCKS = [block for page in PAGES for block in blocks(page)]


def of(language: str, *arguments: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language and set(arguments) <= set(block.arguments)]


def write_files(page: Path, folder: Path) -> dict[str, Path]:
    """The named blocks of a page as files."""
    files = {}
    for block in blocks(page):
        if block.file is not None:
            assert block.file not in files, f"{block}: {block.file} stands twice on this page"
            files[block.file] = folder / block.file
            files[block.file].parent.mkdir(parents=True, exist_ok=True)
            files[block.file].write_text(block.text, encoding="utf-8")
    return files


def parse_yaml(block: Block, folder: Path) -> None:
    """Refuse what the config checker refuses."""
    files = write_files(block.page, folder)
    if block.file is None:
        path = folder / "part.yaml"
        path.write_text(block.text, encoding="utf-8")
        fragment = read_yaml(path)
        features = {**BASE["features"], **fragment.get("features", {})}
        parse(Schema, {**BASE, **fragment, "features": features}, str(block))
    elif block.file.endswith(".schema.yaml"):
        parse(Schema, read_yaml(files[block.file]), str(block))
    else:
        read_job(files[block.file])


@pytest.mark.parametrize("block", of("yaml"), ids=str)
def test_every_yaml_block_parses(block: Block, tmp_path: Path) -> None:
    parse_yaml(block, tmp_path)


@pytest.mark.parametrize("path", JOBS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_example_parses(path: Path) -> None:
    if path.name.endswith(".schema.yaml"):
        parse(Schema, read_yaml(path), path.name)
    else:
        read_job(path)


def test_there_are_examples_and_pages() -> None:
    assert JOBS
    assert len(PAGES) > 10
    assert of("yaml")
    assert of("console")


def list_commands_used(text: str) -> set[str]:
    """``longrec COMMAND`` in running text and in console blocks."""
    return set(re.findall(r"(?:^\$ |`|&& )longrec ([a-z]+)", text, re.M))


def test_every_command_exists() -> None:
    from longrec.cli import build_parser
    from longrec.former_names import FORMER_COMMANDS

    actions = [action for action in build_parser()._actions if isinstance(action.choices, dict)]
    commands = set(actions[0].choices)
    used = {command: page for page in PAGES for command in list_commands_used(page.read_text(encoding="utf-8"))}
    assert {
        command: str(page.name) for command, page in used.items() if command not in {*commands, *FORMER_COMMANDS}
    } == {}
    missing = commands - set(used)
    assert not missing, f"no page shows {sorted(missing)}"


RUNNABLE = sorted({block.page for block in BLOCKS if "run" in block.arguments})


def run_line(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One ``longrec`` command, in this process: starting Python and torch each time would take most of the suite."""
    from longrec.cli import main

    arguments = shlex.split(line)
    while "=" in arguments[0]:
        name, _, value = arguments.pop(0).partition("=")
        assert name == "PYTHONPATH", f"{line}: only PYTHONPATH may be set"
        monkeypatch.syspath_prepend(str(Path(value).resolve()))
    assert arguments.pop(0) == "longrec", f"{line}: only longrec commands can run"
    assert main(arguments) == 0, line


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: str(page.relative_to(ROOT)))
def test_runnable_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}  # of the page, as a reader goes through it in one session
    for block in blocks(page):
        if "run" not in block.arguments:
            continue
        assert block.language in ("python", "console"), f"{block}: only python and console can run"
        if block.language == "python":
            exec(compile(block.text, str(block), "exec"), namespace)
            continue
        for line in block.text.splitlines():
            if line.startswith("$ "):
                run_line(line[2:], monkeypatch)


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


def anchors(page: Path) -> set[str]:
    """What a heading is called in a link."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return {
        re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", text, re.M)
    }


def link_faults(page: Path) -> list[str]:
    """Relative links of a page that lead nowhere."""
    faults = []
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name) if name else page
        if not file.exists():
            faults.append(f"{page.name}: {target}: no such file")
        elif anchor and anchor not in anchors(file):
            faults.append(f"{page.name}: {target}: no such heading")
    return faults


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_resolves(page: Path) -> None:
    assert link_faults(page) == []


def documented(page: Path, heading: str) -> set[str]:
    """Keys in the first column of the table below a heading."""
    text = page.read_text(encoding="utf-8")
    section = re.search(rf"^###? {re.escape(heading)}$(.*?)(?=^##|\Z)", text, re.M | re.S)
    assert section is not None, f"{page.name} has no section {heading!r}"
    return set(re.findall(r"^\| `([a-z_0-9]+)` \|", section[1], re.M))


SECTIONS: list[tuple[str, str, type[Strict]]] = [
    *(("schema.md", cls.__name__, cls) for cls in (Schema, TimeColumn, Label, Feature, History, Condition)),
    ("training.md", "data", DataConfig),
    ("training.md", "log", Source),
    ("training.md", "rows", FileFormat),
    ("training.md", "packed", PackedCells),
    ("training.md", "split", Split),
    ("training.md", "fit", FitConfig),
    ("training.md", "evaluate", EvaluateConfig),
    ("instance-tokens.md", "Compress", CompressConfig),
    ("instance-tokens.md", "Encode", ExtractConfig),
]


@pytest.mark.parametrize(("page", "heading", "cls"), SECTIONS, ids=[f"{page}-{name}" for page, name, _ in SECTIONS])
def test_every_key_is_documented_and_no_other(page: str, heading: str, cls: type[Strict]) -> None:
    keys = {field.alias or name for name, field in cls.model_fields.items()}
    assert documented(ROOT / "docs" / "guide" / page, heading) == keys


def test_every_key_of_a_request_is_documented() -> None:
    from longrec.serve.request_json import RankRequest, RecommendRequest

    for heading, request in (("A request", RankRequest), ("Recommendations", RecommendRequest)):
        collected = documented(ROOT / "docs" / "guide" / "serving.md", heading)
        assert collected == set(request.__struct_fields__)


@pytest.mark.parametrize("script", ["make_models", "make_easyrec"])
def test_what_is_written_from_the_code_is_up_to_date(script: str) -> None:
    """A second; more after a change of a layer: models that stand on it are then run again, until ``make docs``."""
    done = subprocess.run(
        [sys.executable, f"docs/{script}.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


def project() -> dict[str, Any]:
    content: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return content


def test_the_changelog_has_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## (\S+)", text, re.M)
    assert versions[0] == project()["version"]
    newest = text.split("\n## ")[1]
    headings = re.findall(r"^### (.+)$", newest, re.M)
    assert set(headings) <= {"Added", "Changed", "Fixed", "Removed", "Numbers that moved"}


def test_the_readme_begins_with_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^\$ (.+?)(?:\s+#.*)?$", text, re.M)
    assert commands[:2] == ["make demo", "make test"]


def test_every_dependency_has_its_reason() -> None:
    record = next((ROOT / "docs" / "decisions").glob("0002-*.md")).read_text(encoding="utf-8")
    arguments = project()["dependencies"] + [w for group in project()["optional-dependencies"].values() for w in group]
    names = {re.split(r"[<>=!\[ ]", word)[0] for word in arguments} - {"longrec"}
    listed = {name for cell in re.findall(r"^\| ([^|]+) \|", record, re.M) for name in cell.strip().split(", ")}
    assert names <= listed, f"no reason for {sorted(names - listed)}"
    assert listed - {"package", "---"} <= names, f"no longer used: {sorted(listed - names)}"


def test_decision_records_are_numbered_and_short() -> None:
    records = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [record.name[:4] for record in records] == [f"{n:04d}" for n in range(1, len(records) + 1)]
    for record in records:
        lines = record.read_text(encoding="utf-8").splitlines()
        assert lines[0].startswith(f"# {record.name[:4]} "), record.name
        assert len(lines) <= 60, f"{record.name} is longer than a page"


def test_every_page_of_the_guide_is_reachable_from_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in [*(ROOT / "docs" / "guide").glob("*.md"), *(ROOT / "docs" / "decisions").glob("*.md")]:
        name = page.relative_to(ROOT).as_posix()
        assert f"({name}" in text or f"({page.parent.relative_to(ROOT).as_posix()}/)" in text, (
            f"README: no way to {name}"
        )


# ---- planted faults ----------------------------------------------------------------------------------------------


def plant(folder: Path, text: str) -> Path:
    page = folder / "page.md"
    page.write_text(text, encoding="utf-8")
    return page


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("# x.schema.yaml\nuser: u\nitem: i\ntime: t\nlabel: y\nfeatures: {u: {kind: ident}}\n", "kind"),
        ("# x.schema.yaml\nuser: u\nitem: i\ntime: t\nlabl: y\nfeatures: {u: {kind: id}}\n", "did you mean 'label'"),
        ("histories: {h: {features: [i], max_lenght: 3}}\n", "did you mean 'max_length'"),
        ("histories: {h: {features: [nothing]}}\n", "no feature named 'nothing'"),
    ],
)
def test_a_wrong_yaml_block_is_reported(text: str, says: str, tmp_path: Path) -> None:
    page = plant(tmp_path, f"# T\n\n```yaml\n{text}```\n")
    with pytest.raises(Exception, match=re.escape(says)):
        parse_yaml(blocks(page)[0], tmp_path)


def test_a_dead_link_is_reported(tmp_path: Path) -> None:
    page = plant(
        tmp_path, "# A title\n\n[a](#a-title) [b](#other) [c](nothing.md) [d](page.md#a-title) [e](https://x.y)\n"
    )
    assert len(link_faults(page)) == 2


def test_commands_are_listed_from_text_and_from_blocks() -> None:
    assert list_commands_used("run `longrec check`\n\n$ longrec train x && longrec serve y\nlongrec is fine\n") == {
        "check", "train", "serve",
    }  # fmt: skip
