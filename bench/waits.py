"""Waits for a GPU in a training step of every model and variant, counted on the pretend device. Needs no GPU.

    python bench/waits.py

Writes ``results/waits.md``. A step is loss, gradients and optimizers, of a batch in the fields of the conformance
suite, and of a grouped batch if the model reads those. The batch with more waits counts.
"""

from __future__ import annotations

import machine

from longrec.models.core.catalog import names
from longrec.testing.devices import compare_steps, step_far
from longrec.testing.suite import cases_of


def main() -> None:
    """Count, then write the table."""
    rows, total = [], 0
    for name in names():
        for case in cases_of(name):
            waits = compare_steps(case, step_far)
            settings = str(case).removeprefix(name).removeprefix("-")
            kinds = ", ".join(f"{wait} {count}" for wait, count in waits.items())
            rows.append([name, settings, str(waits.total()), kinds])
            total += waits.total()
            print(*rows[-1], flush=True)
    about = (
        "Loss and gradients of each step were those of the CPU. Training waits once more per `fit.log_steps` steps, "
        "and in validations and checkpoints."
    )
    table = machine.format_table(["model", "settings", "waits", "which"], rows)
    text = f"# Waits for the device in a training step\n\n{len(rows)} cases, {total} waits. {about}\n\n{table}\n"
    (machine.RESULTS / "waits.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
