"""Errors a user can act on, each with its exit code (BIDS Apps execution proposal; sysexits.h)."""

from __future__ import annotations

OK = 0
PARTICIPANT_FAILED = 1


class AppError(Exception):
    """What is wrong, where, and what to do: the message is all the user sees."""

    exit_code = 70  # EX_SOFTWARE


class NotBidsError(AppError):
    """The input folder is no BIDS dataset."""

    exit_code = 16


class AnalysisLevelError(AppError):
    """The analysis level is neither participant nor group."""

    exit_code = 17


class NothingSelectedError(AppError):
    """The filters leave no subject or session."""

    exit_code = 18


class UsageError(AppError):
    """The command line or the configuration file cannot be used."""

    exit_code = 64


class InputError(AppError):
    """A file cannot be read or used."""

    exit_code = 66


class TryAgainError(AppError):
    """A resource is busy or missing for the moment."""

    exit_code = 75
