"""``longrec cite``: the BibTeX of a model's docstring, and of the models of a config, a run or a store."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from longrec import __version__, listings
from longrec.cli import main
from longrec.errors import ConfigError
from longrec.models.core import artifact
from longrec.models.core.catalog import Card, describe, is_model, names
from longrec.models.core.citation import Citation, citation, entries, software
from longrec.models.core.registry import build
from longrec.testing.batches import FEW

SCHEMA = """
user: user
item: item
time: {column: time, unit: step}
label: click
features: {user: {kind: id}, item: {kind: id}}
histories:
  seen: {features: [item], max_length: 5}
"""
EASYREC = """
train_input_path: "a.csv" eval_input_path: "b.csv"
data_config { input_type: CSVInput separator: "," batch_size: 16 num_epochs: 1 label_fields: "clk"
  input_fields { input_name: "clk" input_type: INT32 }
  input_fields { input_name: "user_id" input_type: STRING }
  input_fields { input_name: "item_id" input_type: STRING } }
feature_configs { input_names: "user_id" feature_type: IdFeature hash_bucket_size: 10 embedding_dim: 4 }
feature_configs { input_names: "item_id" feature_type: IdFeature hash_bucket_size: 10 embedding_dim: 4 }
model_config { model_class: "DeepFM"
  feature_groups { group_name: "deep" feature_names: ["user_id", "item_id"] wide_deep: DEEP }
  feature_groups { group_name: "wide" feature_names: ["user_id", "item_id"] wide_deep: WIDE }
  deepfm { dnn { hidden_units: [8] } final_dnn { hidden_units: [8] } wide_output_dim: 4 } }
"""


def card(source: str, title: str = "A Title", link: str = "") -> Card:
    return replace(describe("din"), source=source, title=title, link=link, text=f"Some-Net: {title}.")


def parsed(text: str) -> dict[str, dict[str, str]]:
    """Entries of a file of BibTeX by key; braces must close."""
    entries_by_key = {}
    for kind, key, body in re.findall(r"^@(\w+)\{([^,\s]+),\n(.*?)\n\}$", text, re.M | re.S):
        fields = dict(re.findall(r"^  (\w+) += \{(.*)\},$", body, re.M))
        assert len(fields) == body.count("\n") + 1, body
        for value in fields.values():
            depth = 0
            for sign in re.sub(r"\\.", "", value):
                depth += {"{": 1, "}": -1}.get(sign, 0)
                assert depth >= 0, value
            assert depth == 0, value
        entries_by_key[key] = {"kind": kind, **fields}
    return entries_by_key


@pytest.mark.parametrize("name", names())
def test_every_model_can_be_cited(name: str) -> None:
    one = citation(describe(name))
    assert (one.year or 0) > 1950
    (entry,) = parsed(one.bibtex()).values()
    assert entry["title"].startswith("{")
    assert "(" not in one.authors[0]
    assert len(entry["author"].split(" and ")) == len(one.authors) + one.others


def test_different_papers_have_different_keys() -> None:
    by_key: dict[str, set[Citation]] = {}
    for name in names():
        one = citation(describe(name))
        by_key.setdefault(one.key, set()).add(one)
    assert {key: [one.title for one in citations] for key, citations in by_key.items() if len(citations) > 1} == {}


def test_an_entry_of_a_conference() -> None:
    assert citation(describe("din")).bibtex() == (
        "@inproceedings{zhou2018din,\n"
        "  title         = {{Deep Interest Network for Click-Through Rate Prediction}},\n"
        "  author        = {Zhou and Zhu and Song and Fan and Zhu and Ma and Yan and Jin and Li and Gai},\n"
        "  booktitle     = {KDD},\n"
        "  year          = {2018},\n"
        "  eprint        = {1706.06978},\n"
        "  archivePrefix = {arXiv},\n"
        "  url           = {https://arxiv.org/abs/1706.06978},\n"
        "}"
    )
    assert citation(describe("fm")).fields()["doi"] == "10.1109/ICDM.2010.127"


@pytest.mark.parametrize(
    ("source", "authors", "others", "venue", "kind"),
    [
        ("Ma, KDD 2018", ("Ma",), False, "KDD", "inproceedings"),
        ("Ma, Li, DLP-KDD 2018", ("Ma", "Li"), False, "DLP-KDD", "inproceedings"),
        ("Ma and Li, KDD 2018", ("Ma", "Li"), False, "KDD", "inproceedings"),
        ("Ma, Yi, and Li, KDD 2018", ("Ma", "Yi", "Li"), False, "KDD", "inproceedings"),
        ("Cheng et al., DLRS 2016", ("Cheng",), True, "DLRS", "inproceedings"),
        ("Cheng, Koc, et al., DLRS 2016", ("Cheng", "Koc"), True, "DLRS", "inproceedings"),
        ("Cheng, Koc and others, DLRS 2016", ("Cheng", "Koc"), True, "DLRS", "inproceedings"),
        ("Jiaqi Ma, Zhe Zhao, KDD 2018", ("Jiaqi Ma", "Zhe Zhao"), False, "KDD", "inproceedings"),
        ("van den Berg, O'Neil, Müller, ICML 2018", ("van den Berg", "O'Neil", "Müller"), 0, "ICML", "inproceedings"),
        ("Ma, arXiv 2018", ("Ma",), False, "arXiv", "misc"),
        ("Ma, TKDE 2018", ("Ma",), False, "TKDE", "article"),
        ("Ma, Machine Learning 2018", ("Ma",), False, "Machine Learning", "article"),
        ("Ma, Trans. Neural Networks 2018, the code of 2019", ("Ma",), False, "Trans. Neural Networks", "article"),
    ],
)  # fmt: skip
def test_what_a_docstring_may_say(source: str, authors: tuple[str, ...], others: bool, venue: str, kind: str) -> None:
    one = citation(card(source))
    assert (one.authors, one.others, one.venue, one.kind, one.year) == (authors, others, venue, kind, 2016 + 2 * (
        "2018" in source))  # fmt: skip
    assert len(parsed(one.bibtex())) == 1


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("", "names no year"),
        ("Ma, Zhao, KDD", "names no year"),
        ("Ma, Zhao, 2018", "names no venue before the year 2018"),
        ("KDD 2018", "names no author before 'KDD'"),
        ("ByteDance (14 authors), arXiv 2026", "'ByteDance (14 authors)' is no name of an author"),
        ("Ma, 3 others, KDD 2018", "'3 others' is no name"),
    ],
)
def test_what_a_docstring_must_not_say(source: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        citation(card(source))
    assert "model din" in str(caught.value)
    assert "expected AUTHORS, VENUE YEAR. LINK" in str(caught.value)


def test_signs_of_bibtex_and_remarks() -> None:
    one = citation(card("Ma, R&D 2018", "50% of_{it} & more (in part)"))
    assert one.title == "50% of_{it} & more"
    (entry,) = parsed(one.bibtex()).values()
    assert entry["title"] == r"{50\% of\_\{it\} \& more}"
    assert entry["booktitle"] == r"R\&D"
    assert citation(card("Ma, KDD 2018", "Nets (GNN)")).title == "Nets (GNN)"
    assert citation(card("Müller, KDD 2018")).key == "muller2018somenet"
    group = citation(card("Taobao search team, Ma, here 2018"))
    assert "{{Taobao search team} and Ma}" in group.bibtex()
    assert group.key == "taobao2018somenet"


def test_longrec_itself() -> None:
    (entry,) = parsed(software().bibtex()).values()
    assert entry["howpublished"] == f"Software, version {__version__}"
    assert entry["author"] == "{The LongRec authors}"


def test_one_paper_is_one_entry_and_keys_are_distinct(monkeypatch: pytest.MonkeyPatch) -> None:
    bibliography = entries(["iat", "iat_reader", "din", "iat"])
    assert [entry.models for entry in bibliography] == [("iat", "iat_reader"), ("din",), ("longrec",)]
    cards = {"a": card("Ma, KDD 2018", "One"), "b": card("Ma, KDD 2018", "Two"), "c": card("Ma, KDD 2018", "Three")}
    monkeypatch.setattr("longrec.models.core.citation.describe", cards.__getitem__)
    bibliography = entries("abc")
    keys = [entry.key for entry in bibliography]
    assert keys == ["ma2018somenet", "ma2018someneta", "ma2018somenetb", "longrec"]
    assert keys == list(parsed("\n".join(entry.bibtex for entry in bibliography)))


def test_what_is_a_model() -> None:
    assert is_model("din")
    assert is_model("longrec.models.din")
    assert not is_model("relu")
    assert not is_model("longrec.errors")
    assert not is_model("../din")
    assert not is_model("x.yaml")


def test_a_model_is_cited_without_torch() -> None:
    code = "import sys; from longrec.cli import main; sys.exit(main(['cite', 'din']) or 3 * ('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert set(parsed(done.stdout)) == {"zhou2018din", "longrec"}


# ---- configs, runs, stores ---------------------------------------------------------------------------------------


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop.schema.yaml").write_text(SCHEMA)
    config = "data: {schema: shop.schema.yaml, log: events.parquet}\nmodel: {name: iat_reader, base: {name: din}}\n"
    (tmp_path / "reader.yaml").write_text(config)
    return tmp_path


def source(folder: Path) -> None:
    """Write the files beside tokens that ``longrec compress`` writes and citing reads."""
    artifact.save(build({"name": "iat", "base": {"name": "deepfm"}}, FEW), folder / "source" / "model")
    (folder / "source" / "source.json").write_text("{}")


def test_a_config_cites_its_model_and_the_models_inside(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cite", "reader.yaml"]) == 0
    output = capsys.readouterr().out
    assert set(parsed(output)) == {"li2026iat", "zhou2018din", "longrec"}
    assert "% model.base: din\n" in output
    assert re.sub(r"^%.*|^@.*?^\}$", "", output, flags=re.M | re.S).strip() == ""
    assert main(["cite", "reader.yaml", "model.base.name=deepfm", "--json", "-"]) == 0
    assert [entry["models"] for entry in json.loads(capsys.readouterr().out)["entries"]] == [
        ["iat_reader"], ["deepfm"], ["longrec"],
    ]  # fmt: skip


def test_tokens_cite_who_wrote_them(shop: Path) -> None:
    tokens = ["data.schema.histories.tokens={from: tokens/v1}"]
    bibliography = listings.cite("reader.yaml", tokens)
    assert "histories.tokens" not in bibliography.models
    assert "it holds no source" in bibliography.unread["histories.tokens"]
    source(shop / "tokens" / "v1")
    bibliography = listings.cite("reader.yaml", tokens)
    assert (bibliography.models["histories.tokens"], bibliography.unread) == (["iat", "deepfm"], {})
    assert [entry.models for entry in bibliography.entries] == [
        ("iat_reader", "iat"),
        ("din",),
        ("deepfm",),
        ("longrec",),
    ]
    assert listings.cite("tokens/v1").models == {"source": ["iat", "deepfm"]}
    (shop / "tokens" / "v1" / "source" / "model" / "model.json").write_text("[]")
    assert "not readable" in listings.cite("reader.yaml", tokens).unread["histories.tokens"]
    (away,) = listings.cite("reader.yaml", ["data.schema.histories.tokens={from: 'redis://h/1'}"]).unread.values()
    assert away.startswith("redis://h/1: it holds no source")


def test_a_run_is_cited_by_its_config(shop: Path) -> None:
    (shop / "runs" / "one").mkdir(parents=True)
    (shop / "runs" / "one" / "config.yaml").write_text(
        (shop / "reader.yaml").read_text().replace("shop.s", "../../shop.s")
    )
    assert listings.cite("runs/one").models == {"model": ["iat_reader"], "model.base": ["din"]}
    assert listings.cite(shop / "runs" / "one").models["model.base"] == ["din"]


def test_an_easyrec_config_is_cited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "their.config").write_text(EASYREC)
    assert main(["cite", str(tmp_path / "their.config")]) == 0
    assert set(parsed(capsys.readouterr().out)) == {"guo2017deepfm", "longrec"}


def test_a_model_of_your_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(listings.__file__).parent / "models" / "lr.py").read_text()
    (tmp_path / "my_lr.py").write_text(text)
    (tmp_path / "your_lr.py").write_text(text.replace("Richardson, Dominowska, Ragno, WWW 2007", "We, here"))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "lr.py").write_text(text)
    assert listings.cite("mine.lr").entries[0].key == "richardson2007lr"
    (tmp_path / "mine" / "yours.py").write_text(text.replace("Richardson, Dominowska, Ragno, WWW 2007", "We, here"))
    with pytest.raises(ConfigError, match=r"model mine\.yours: 1 fault\n .* names no year: 'We, here'"):
        listings.cite("mine.yours")


def test_what_cannot_be_cited(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for word, says in (
        ("dinn", "did you mean 'din'?"),
        ("none.yaml", "no such file"),
        (".", "the folder of a run"),
    ):
        assert main(["cite", word]) == 2
        assert says in capsys.readouterr().err, word
    assert main(["cite", "reader.yaml", "model.bse=1"]) == 2
    assert "did you mean 'base'?" in capsys.readouterr().err
