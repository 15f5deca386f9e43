"""Tests of the architecture: imports between packages, contents of files, and operations that no file may use.

The checks are plain functions over a folder, so that the second half of this file can plant every fault in a small
tree and test that it is reported.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "longrec"

BASE = {
    "errors", "config", "onnx_import", "progress", "resources", "signatures", "tabular", "terminal_text", "yaml_reader",
}  # fmt: skip
TOP = {
    "__init__", "__main__", "audits", "catalog_command", "cli", "command_output", "commands", "demo",
    "diagnose_command", "entry", "events_command", "exports", "fitting", "former_names", "help_pages", "imports",
    "length_command", "listings", "new_row_options", "off_policy_command", "pipeline_commands", "prepared_log",
    "settings_text", "stream_command", "tokenize_command", "warm_command",
}  # fmt: skip
MAY_IMPORT: dict[str, set[str]] = {
    "features": set(),
    "metrics": set(),
    "interop": {"features"},
    "nn": {"features"},
    "store": {"features"},
    "generation": {"index"},
    "models": {"features", "nn", "generation"},
    "exploration": {"features", "nn", "models"},
    "data": {"features", "store"},
    "index": set(),
    "pipeline": {"features", "store", "models", "index"},
    "training": {"features", "metrics", "nn", "store", "data", "models", "pipeline", "reporting"},
    "exporting": {"features", "store", "nn", "models", "pipeline", "index", "generation", "exploration"},
    "serve": {"features", "store", "pipeline", "exporting", "index", "generation"},
    "semantic_ids": {
        "features", "metrics", "nn", "data", "models", "training", "exporting", "reporting", "auditing",
    },
    "auditing": {"features", "metrics", "nn", "data", "models"},
    "reporting": {"metrics"},
    "evaluation": {
        "features", "metrics", "store", "data", "models", "pipeline", "training", "exporting", "serve", "reporting",
    },
    "testing": {"features", "nn", "models", "training"},
    "lengths": {"features", "metrics", "models", "data", "training", "exporting", "reporting", "testing"},
}  # fmt: skip
LINES = 400
VAGUE = re.compile(r"(^|_)(utils?|commons?|helpers?|misc)(_|$)")
UNSAFE_MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {
    "eval", "exec", "compile", "torch.load", "torch.save", "torch.jit.load", "torch.export.load",
    "yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all", "yaml.full_load_all",
}  # fmt: skip
MACHINE_PATH = re.compile(r"(?<![\w/:.~-])/(?:work|home|root|Users|opt|tmp|mnt)/\w")
TORCH_FREE = ("features.schema", "features.feature_encoders", "data.prepare", "metrics", "reporting", "serve.service")


def files(package: Path) -> list[Path]:
    """Return all Python files of a package."""
    return sorted(package.rglob("*.py"))


@functools.cache
def parse(text: str) -> ast.Module:
    """Return the tree of a file. Many checks read the same files."""
    return ast.parse(text)


def tree_of(path: Path) -> ast.Module:
    return parse(path.read_text(encoding="utf-8"))


def module_of(package: Path, path: Path) -> str:
    """Return the dotted name inside the package: ``nn.fm``, ``nn`` for its ``__init__``, ``__init__`` at the top."""
    components = list(path.relative_to(package).with_suffix("").parts)
    if components[-1] == "__init__" and len(components) > 1:
        components.pop()
    return ".".join(components)


def modules_of(package: Path) -> set[str]:
    """Return the dotted names of all files inside the package."""
    return {module_of(package, file) for file in files(package)}


def imports(package: Path, path: Path, modules: set[str]) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name inside the package) of all imports of the package itself, which has these modules."""
    name = package.name
    here = [name, *path.relative_to(package).with_suffix("").parts]
    for node in ast.walk(tree_of(path)):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: len(here) - node.level]) if node.level else ""
            source = ".".join(component for component in (base, node.module) if component)
            targets = [f"{source}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and called(node).split(".")[-1] in ("import_module", "__import__"):
            targets = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        for dotted in targets:
            if dotted != name and not dotted.startswith(f"{name}."):
                continue
            inside = dotted.removeprefix(name).lstrip(".")
            while inside and inside not in modules and inside not in MAY_IMPORT:  # drop the names of objects in files
                inside = inside.rpartition(".")[0]
            yield getattr(node, "lineno", 0), inside or "__init__"


def called(node: ast.Call) -> str:
    """Return the dotted name of the callee of a call. Empty if it has none."""
    components: list[str] = []
    target: ast.expr = node.func
    while isinstance(target, ast.Attribute):
        components.append(target.attr)
        target = target.value
    return ".".join([target.id, *reversed(components)]) if isinstance(target, ast.Name) else ""


def import_faults(package: Path) -> list[str]:
    """Return imports against the table, and packages that are not in the table."""
    faults, modules = [], modules_of(package)
    for path in files(package):
        package_name = module_of(package, path).split(".")[0]
        if package_name in TOP:
            continue
        if package_name not in BASE and package_name not in MAY_IMPORT:
            faults.append(f"{path.name}: {package_name} is no package of the architecture")
            continue
        allowed = BASE | {package_name} | MAY_IMPORT.get(package_name, set())
        for line, target in imports(package, path, modules):
            if target.split(".")[0] not in allowed:
                faults.append(f"{path.relative_to(package)}:{line}: {package_name} may not import {target}")
    return faults


def cycle_faults(package: Path) -> list[str]:
    """Return import cycles of files."""
    modules = modules_of(package)
    graph = {module_of(package, path): {t for _, t in imports(package, path, modules)} for path in files(package)}
    state: dict[str, int] = {}
    faults: list[str] = []

    def visit(node: str, trail: list[str]) -> None:
        state[node] = 1
        for target in sorted(graph.get(node, set()) - {node}):
            if state.get(target) == 1:
                faults.append("cycle: " + " -> ".join([*trail[trail.index(target) :], target]))
            elif target not in state:
                visit(target, [*trail, target])
        state[node] = 2

    for node in sorted(graph):
        if node not in state:
            visit(node, [node])
    return faults


def name_faults(package: Path) -> list[str]:
    """Return files and folders with vague names."""
    names = {component for path in files(package) for component in path.relative_to(package).with_suffix("").parts}
    return [f"{name}: says nothing about what is inside" for name in sorted(names) if VAGUE.search(name)]


def length_faults(package: Path) -> list[str]:
    """Return files that are longer than allowed."""
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files(package)}
    return [f"{path.relative_to(package)}: {n} lines, at most {LINES}" for path, n in lengths.items() if n > LINES]


def _safe_loader(node: ast.Call, tree: ast.Module) -> bool:
    loader = [k.value for k in node.keywords if k.arg == "Loader"] + node.args[1:2]
    heirs = {
        c.name
        for c in ast.walk(tree)
        if isinstance(c, ast.ClassDef) and any(ast.unparse(base).endswith("SafeLoader") for base in c.bases)
    }
    return bool(loader) and (ast.unparse(loader[0]).endswith("SafeLoader") or ast.unparse(loader[0]) in heirs)


def unsafe_faults(package: Path) -> list[str]:
    """Return calls that run code from a file or a string, and errors that are swallowed."""
    faults = []
    for path in files(package):
        tree = tree_of(path)
        for node in ast.walk(tree):
            wrong = ""
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                wrong = next((f"imports {n}" for n in names if n.split(".")[0] in UNSAFE_MODULES), "")
                if isinstance(node, ast.ImportFrom) and not node.level:
                    pairs = [f"{node.module}.{alias.name}" for alias in node.names]
                    wrong = wrong or next((f"imports {pair}" for pair in pairs if pair in UNSAFE_CALLS), "")
            elif isinstance(node, ast.Call):
                name = called(node)
                pickled = [k for k in node.keywords if k.arg == "allow_pickle" and name.endswith("load")]
                if name.removeprefix("builtins.") in UNSAFE_CALLS:
                    wrong = f"calls {name}"
                elif any(not isinstance(k.value, ast.Constant) or k.value.value is not False for k in pickled):
                    wrong = f"calls {name} with allow_pickle"
                elif name in ("yaml.load", "yaml.load_all") and not _safe_loader(node, tree):
                    wrong = "calls yaml.load without a safe loader"
                elif name.endswith("suppress") and any(ast.unparse(a).endswith("Exception") for a in node.args):
                    wrong = "suppresses every error"
            elif isinstance(node, ast.ExceptHandler):
                empty = (ast.Pass, ast.Expr)
                if all(isinstance(s, empty) and not isinstance(getattr(s, "value", None), ast.Call) for s in node.body):
                    wrong = "swallows an error (except: pass)"
            if wrong:
                faults.append(f"{path.relative_to(package)}:{getattr(node, 'lineno', 0)}: {wrong}")
    return faults


def heir_faults(package: Path) -> list[str]:
    """Return models that inherit from another model. Models are composed through nested configs."""
    faults = []
    for path in sorted((package / "models").glob("*.py")):
        tree = tree_of(path)
        siblings = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{package.name}.models.")
            for alias in node.names
            if not (node.module or "").startswith(f"{package.name}.models.core.")
        }
        for node in ast.walk(tree):
            bases = [ast.unparse(base).split("[")[0] for base in node.bases] if isinstance(node, ast.ClassDef) else []
            faults += [f"models/{path.name}: {b} is a sibling's class" for b in bases if b.split(".")[0] in siblings]
    return faults


def path_faults(root: Path) -> list[str]:
    """Return lines that name a folder of one machine."""
    faults = []
    for folder, pattern in (
        ("src", "*"),
        ("docs", "*"),
        ("tests", "*"),
        ("bench", "*"),
        ("examples", "*"),
        (".", "*.*"),
    ):
        for path in sorted((root / folder).glob(pattern) if folder == "." else (root / folder).rglob(pattern)):
            if path.suffix in (".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".html", ".js") and path.is_file():
                for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                    if MACHINE_PATH.search(line):
                        faults.append(f"{path.relative_to(root)}:{number}: names a path of one machine: {line.strip()}")
    return faults


CHECKS: tuple[Callable[[Path], list[str]], ...] = (
    import_faults, cycle_faults, name_faults, length_faults, unsafe_faults, heir_faults,
)  # fmt: skip


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_packages_keep_the_architecture(check: Callable[[Path], list[str]]) -> None:
    assert check(PACKAGE) == []


def test_no_text_names_a_path_of_one_machine() -> None:
    assert path_faults(ROOT) == []


def test_every_package_exists() -> None:
    assert [package_name for package_name in MAY_IMPORT if not (PACKAGE / package_name).is_dir()] == []


def torch_comes_with(code: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a fresh interpreter that fails if torch was imported by the end."""
    check = "import sys; sys.exit(3 if 'torch' in sys.modules else 0)"
    return subprocess.run([sys.executable, "-c", f"{code}\n{check}"], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("module", TORCH_FREE)
def test_no_torch_comes_with(module: str) -> None:
    done = torch_comes_with(f"import longrec.{module}")
    assert done.returncode == 0, done.stderr or f"longrec.{module} imports torch"


@pytest.mark.parametrize("arguments", [["--help"], ["models"], ["help", "fit.lr"], ["help", "din"]], ids=" ".join)
def test_no_torch_comes_with_the_command_line(arguments: list[str]) -> None:
    done = torch_comes_with(
        "from longrec.cli import main\n"
        f"try:\n    code = main({arguments!r})\nexcept SystemExit as end:\n    code = end.code\nassert not code, code"
    )
    assert done.returncode == 0, done.stderr or f"longrec {' '.join(arguments)} imports torch"


# ---- planted faults: each check must report its own --------------------------------------------------------------


def plant(folder: Path, tree: dict[str, str]) -> Path:
    """Write a small package named longrec with these files."""
    package = folder / "longrec"
    for name, text in tree.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return package


CLEAN = {
    "__init__.py": "",
    "errors.py": "class LongRecError(Exception):\n    pass\n",
    "cli.py": "from longrec.training import fit\n",
    "features/__init__.py": "",
    "features/batch.py": "from longrec.errors import LongRecError\n",
    "nn/__init__.py": "",
    "nn/fm.py": "from longrec.features import batch\nfrom . import other\n",
    "nn/other.py": "import re\nword = re.compile('a')\n",
    "models/__init__.py": "",
    "models/core/base.py": "class Ranker:\n    pass\n",
    "models/fm.py": "from longrec.models.core.base import Ranker\nclass FM(Ranker):\n    pass\n",
    "data/__init__.py": "",
    "training/__init__.py": "",
    "training/fit.py": "def fit():\n    from longrec.data import log\n",
    "data/log.py": "import yaml\nclass Own(yaml.SafeLoader):\n    pass\nx = lambda t: yaml.load(t, Own)\n",
}


def test_a_clean_tree_has_no_fault(tmp_path: Path) -> None:
    package = plant(tmp_path, CLEAN)
    assert [fault for check in CHECKS for fault in check(package)] == []


PLANTED = [
    (import_faults, "features/x.py", "from longrec.nn import fm", "features may not import nn.fm"),
    (import_faults, "models/x.py", "import longrec.data.log", "models may not import data.log"),
    (import_faults, "models/x.py", "def f():\n    from longrec.store import segment", "models may not import store"),
    (import_faults, "nn/x.py", "from ..data import log", "nn may not import data.log"),
    (import_faults, "data/x.py", "i.import_module('longrec.training.fit')", "data may not import training.fit"),
    (import_faults, "training/x.py", "from longrec import cli", "training may not import cli"),
    (import_faults, "training/x.py", "from longrec import training_it", "training may not import __init__"),
    (import_faults, "errors.py", "from longrec.features import batch", "errors may not import features.batch"),
    (import_faults, "kitchen/x.py", "", "kitchen is no package"),
    (cycle_faults, "nn/other.py", "from longrec.nn import fm", "cycle: nn.fm -> nn.other -> nn.fm"),
    (cycle_faults, "nn/other.py", "def f():\n    import longrec.nn.fm", "cycle: nn.fm -> nn.other -> nn.fm"),
    (name_faults, "nn/utils.py", "", "utils"),
    (name_faults, "nn/test_helpers.py", "", "test_helpers"),
    (name_faults, "nn/common/x.py", "", "common"),
    (name_faults, "misc.py", "", "misc"),
    (length_faults, "nn/x.py", "x = 1\n" * 401, "401 lines"),
    (unsafe_faults, "data/x.py", "import pickle", "imports pickle"),
    (unsafe_faults, "data/x.py", "from joblib import dump", "imports joblib"),
    (unsafe_faults, "data/x.py", "from torch import load", "imports torch.load"),
    (unsafe_faults, "data/x.py", "eval('1')", "calls eval"),
    (unsafe_faults, "data/x.py", "import builtins\nbuiltins.exec('1')", "calls builtins.exec"),
    (unsafe_faults, "data/x.py", "import torch\ntorch.load('f', weights_only=True)", "calls torch.load"),
    (unsafe_faults, "data/x.py", "import torch\ntorch.save(1, 'f')", "calls torch.save"),
    (unsafe_faults, "data/x.py", "import numpy as np\nnp.load('f', allow_pickle=True)", "allow_pickle"),
    (unsafe_faults, "data/x.py", "import yaml\nyaml.load('a')", "safe loader"),
    (unsafe_faults, "data/x.py", "import yaml\nyaml.load('a', Loader=yaml.FullLoader)", "safe loader"),
    (unsafe_faults, "data/x.py", "import yaml\nyaml.full_load('a')", "calls yaml.full_load"),
    (unsafe_faults, "data/x.py", "try:\n    f()\nexcept OSError:\n    pass", "swallows"),
    (unsafe_faults, "data/x.py", "try:\n    f()\nexcept:\n    ...", "swallows"),
    (unsafe_faults, "data/x.py", "import contextlib\nwith contextlib.suppress(Exception):\n    f()", "suppresses"),
    (heir_faults, "models/din.py", "from longrec.models.fm import FM\nclass DIN(FM):\n    pass", "sibling"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "name", "text", "says"), PLANTED, ids=[f"{p[0].__name__}-{p[3]}" for p in PLANTED])
def test_a_planted_fault_is_reported(
    check: Callable[[Path], list[str]], name: str, text: str, says: str, tmp_path: Path
) -> None:
    package = plant(tmp_path, {**CLEAN, name: text})
    faults = check(package)
    assert len(faults) == 1, faults
    assert says in faults[0]


def test_a_path_of_one_machine_is_reported_in_any_text(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("see `" + "/" + "home/ann/x`, POST /v2/models/din/infer, a/tmp/b\n")
    assert len(path_faults(tmp_path)) == 1


def test_torch_is_noticed() -> None:
    assert torch_comes_with("import longrec.features.batch").returncode == 3
