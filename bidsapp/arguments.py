"""What the command lines of all commands have in common; imports nothing heavy."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from bidsapp.errors import UsageError

#: What argparse says where arguments without a name are not there.
_MISSING = "the following arguments are required"


class Parser(argparse.ArgumentParser):
    """Options in full only, with dashes or underscores; what is wrong is a `UsageError`; help shows the defaults."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_Help, allow_abbrev=False, **options)
        self._given: list[str] = []

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """As in the parent class, which `parse_args` calls too."""
        self._given = [_dashed(argument) for argument in (sys.argv[1:] if args is None else args)]
        return super().parse_known_args(self._given, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise a `UsageError`."""
        several = {name for action in self._actions if action.nargs == "+" for name in action.option_strings}
        takers = [argument for argument in self._given if argument in several]
        hint = (
            f" {takers[-1]} takes all that follows it: write it behind them." if takers and _MISSING in message else ""
        )
        raise UsageError(f"{message}.{hint} See '{self.prog} --help'.")


def _dashed(argument: str) -> str:
    """``--an_option=a_value`` as ``--an-option=a_value``; what is no option stays."""
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if argument.startswith("--") else argument


def bare_label(text: str) -> str:
    """A label of a subject or session as BIDS has it: without the ``sub-`` or ``ses-`` of names."""
    return text.removeprefix("sub-").removeprefix("ses-")


def missing_labels(
    there: Iterable[tuple[str, str | None]], subjects: Iterable[str], sessions: Iterable[str]
) -> list[str]:
    """Labels asked for that are not among the (subject, session) that are there, with their prefixes."""
    present = {name for subject, session in there for name in (f"sub-{subject}", f"ses-{session}")}
    asked = [*(f"sub-{label}" for label in subjects), *(f"ses-{label}" for label in sessions)]
    return [name for name in asked if name not in present]


def gigabytes(text: str) -> float:
    """An amount of memory in GB, from a number of GB or a number with its unit.

    Examples
    --------
    >>> gigabytes("8"), gigabytes("7.5GB"), gigabytes("8192M")
    (8.0, 7.5, 8.0)
    """
    read = re.fullmatch(r"([0-9.]+)\s*(?:([MGT])(?:i?B)?)?", text.strip(), re.IGNORECASE)
    try:
        if read:
            return float(read[1]) * {"M": 1 / 1024, "G": 1.0, "T": 1024.0}[(read[2] or "G").upper()]
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no amount of memory; write 8 (GB), 8GB or 8000MB")


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        told = action.help or ""
        empty = action.default is None or action.default in ((), [], "", False)
        if empty or "(default" in told:
            return told
        if isinstance(action.default, (tuple, list)):
            return f"{told} (default: {' '.join(map(str, action.default))})"
        return super()._get_help_string(action)
