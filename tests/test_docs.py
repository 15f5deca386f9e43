"""The documentation holds: every YAML parses, every command and link exists, every key of a request is documented.

``tests/docs/doc_pages.py`` says how a page is read. The other tests of the documentation are beside it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from doc_pages import PAGES, ROOT, Block, blocks, link_faults, list_commands_used, of, plant, write_files

from longrec import __version__
from longrec.config import parse, read_yaml
from longrec.features.schema import Schema
from longrec.pipeline.config import is_pipeline_file, read_pipeline
from longrec.semantic_ids.settings import read_settings
from longrec.training.job import read_job

JOBS = sorted((ROOT / "examples").rglob("*.yaml"))
BASE: dict[str, Any] = {
    "user": "u",
    "item": "i",
    "time": "t",
    "label": "y",
    "features": {"u": {"kind": "id"}, "i": {"kind": "id"}},
}


def read_file(path: Path) -> None:
    """Read a job, a pipeline, or the config of a tokenizer."""
    content = read_yaml(path)
    if is_pipeline_file(path):
        read_pipeline(path)
    elif "vectors" in content:
        read_settings(content, str(path), path.parent)
    else:
        read_job(path)


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
        read_file(files[block.file])


@pytest.mark.parametrize("block", of("yaml"), ids=str)
def test_every_yaml_block_parses(block: Block, tmp_path: Path) -> None:
    parse_yaml(block, tmp_path)


@pytest.mark.parametrize("path", JOBS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_example_parses(path: Path) -> None:
    if path.name.endswith(".schema.yaml"):
        parse(Schema, read_yaml(path), path.name)
    else:
        read_file(path)


def test_there_are_examples_and_pages() -> None:
    assert JOBS
    assert len(PAGES) > 10
    assert of("yaml")
    assert of("console")


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_resolves(page: Path) -> None:
    assert link_faults(page) == []


def documented(page: Path, heading: str) -> set[str]:
    """Keys in the first column of the table below a heading."""
    text = page.read_text(encoding="utf-8")
    section = re.search(rf"^###? {re.escape(heading)}$(.*?)(?=^##|\Z)", text, re.M | re.S)
    assert section is not None, f"{page.name} has no section {heading!r}"
    return set(re.findall(r"^\| `([a-z_0-9]+)` \|", section[1], re.M))


def test_every_key_of_a_request_is_documented() -> None:
    from longrec.serve.history_request import HistoryRequest
    from longrec.serve.request_json import RankRequest, RecommendRequest

    requests = {"A request": RankRequest, "Recommendations": RecommendRequest, "The history of a score": HistoryRequest}
    for heading, request in requests.items():
        collected = documented(ROOT / "docs" / "guide" / "serving.md", heading)
        assert collected == set(request.__struct_fields__)


@pytest.mark.parametrize("script", ["make_models", "make_easyrec", "make_reference"])
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
    assert versions[0] == __version__
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
