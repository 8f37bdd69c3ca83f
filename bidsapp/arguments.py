"""The parser of a command line, the same for every command; imports nothing heavy."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from bidsapp.errors import UsageError


class Parser(argparse.ArgumentParser):
    """Options in full only; what is wrong is a `UsageError`; help shows the defaults there are."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_Help, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise a `UsageError`."""
        raise UsageError(f"{message}. See '{self.prog} --help'.")


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        told = action.help or ""
        empty = action.default is None or action.default in ((), [], "", False)
        return told if empty or "(default" in told else super()._get_help_string(action)
