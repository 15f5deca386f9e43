"""Names of commands and options in earlier versions, and their refusal."""

from __future__ import annotations

from collections.abc import Sequence

from longrec.errors import ConfigError

FORMER_COMMANDS = {"worlds": "synthetic"}
FORMER_OPTIONS = {
    "evaluate": {"part": "split"},
    "predict": {"part": "split"},
    "compare": {"part": "split", "unit": "resample", "replicates": "n-resamples"},
    "synthetic": {"tell": "signal"},
}


def refuse_former_names(arguments: Sequence[str]) -> None:
    """Refuse a command and options under the names of earlier versions.

    Raises:
        ConfigError: if the command line has former names. All are listed, each with its new name.
    """
    command, *rest = arguments
    faults = []
    if command in FORMER_COMMANDS:
        new = FORMER_COMMANDS[command]
        faults.append(f"longrec {command} is called longrec {new}; write longrec {' '.join([new, *rest[:1]])}")
        command = new
    former = FORMER_OPTIONS.get(command, {})
    for index, argument in enumerate(rest):
        if argument == "--":
            break
        option, equals, value = argument.partition("=")
        name = option.removeprefix("--")
        if name == option or name not in former:
            continue
        if not equals:
            value = next((item for item in rest[index + 1 : index + 2] if not item.startswith("-")), "")
        new = f"--{former[name]}"
        faults.append(f"{option} is called {new}; write {f'{new} {value}'.rstrip()}")
    if faults:
        raise ConfigError("command line", faults)
