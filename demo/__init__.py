"""A made-up BIDS dataset whose truth is known: heads built by code around the packaged MNI template."""

from __future__ import annotations

from demo.dataset import make_dataset

__all__ = ["make_dataset"]
