"""Checks of what the file of every model says: its docstring, its settings. No setting changes them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

from longrec.models.core.catalog import describe, help_text
from longrec.models.core.citation import citation
from longrec.models.core.registry import build
from longrec.testing.case import Case
from longrec.testing.expect import expect, expect_config_error


def check_misspelt_settings_are_refused(case: Case) -> None:
    """A misspelled key of any setting is refused, with the right one in the message."""
    for key in case.model_class.Config.model_fields:
        wrong = key[:-1] + key[-1] * 2
        section = {"name": case.name, **case.settings, wrong: 1}
        text = f"model.{wrong}: unknown key; did you mean {key!r}?"
        expect_config_error(lambda section=section: build(section, case.fields), text, f"the setting {wrong}")  # type: ignore[misc]
    section = {"name": case.name, "no_such_key": 1}
    expect_config_error(lambda: build(section, case.fields), "no_such_key: unknown key", "the setting no_such_key")


def check_docstring_cites(case: Case) -> None:
    """The module's docstring has a title, a source with its year and link, departures, and shapes."""
    cls, card = case.model_class, describe(case.name)
    link = re.match(r"https?://(arxiv\.org|doi\.org|\S+)", card.link)
    expect(link, "the second paragraph of the module's docstring has no link to the paper")
    expect(card.title, "the first line of the module's docstring has no title: NAME: TITLE")
    year = "the second paragraph has no year: AUTHORS, VENUE YEAR. LINK (see models/core/citation.py)"
    expect(citation(card).year, year)
    expect("\nDepartures from the paper\n" in card.text, "the module's docstring has no 'Departures from the paper'")
    expect(re.search(r"^Shapes: \S", card.text, re.MULTILINE), "the module's docstring has no line 'Shapes: ...'")
    read = f"reads_history: {card.reads_history} in the file, {cls.reads_history} in the class"
    expect(card.reads_history == cls.reads_history, read)
    kinds = {base.__name__ for base in cls.__mro__[1:]}
    expect(card.kind.capitalize() in kinds, f"the file derives from {card.kind}, the class does not")
    expect(inspect.getdoc(cls), f"{cls.__name__} has no docstring")


def check_settings_are_described(case: Case) -> None:
    """Every setting has a default and a description, and ``longrec help`` prints them."""
    text = help_text(case.name)
    for key, setting in case.model_class.Config.model_fields.items():
        expect(not setting.is_required(), f"the setting {key} has no default")
        expect(setting.description, f"the setting {key} has no description")
        expect(f"    {key}: " in text, f"longrec help does not list the setting {key}")
        expect(str(setting.description) in text, f"longrec help does not print the description of {key}")


CHECKS: tuple[Callable[[Case], None], ...] = (
    check_misspelt_settings_are_refused,
    check_docstring_cites,
    check_settings_are_described,
)
"""Checks of the file of every model. They read the class and never a value of a setting."""
