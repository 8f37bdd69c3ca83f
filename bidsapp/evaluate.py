"""``bidsapp evaluate REF_DIR PRED_DIR ...``: how well segmentations agree with references."""

from __future__ import annotations

from collections.abc import Sequence

from bidsapp.errors import AppError


def main(argv: Sequence[str]) -> int:
    """Run ``bidsapp evaluate``; the return value is the exit code."""
    raise AppError("evaluate: being written.")
