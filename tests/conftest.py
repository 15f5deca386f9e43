"""For every test: one thread that waits without spinning, and shapes checked in layers and models."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read once, when torch is imported

# Test modules are not importable by name; what several rooms' tests share lies here.
sys.path.insert(0, str(Path(__file__).parent / "models"))

import torch
from jaxtyping import install_import_hook

torch.set_num_threads(1)
install_import_hook(["longrec.nn", "longrec.models"], "shape_checks.checked")
