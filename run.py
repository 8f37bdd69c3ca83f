#!/usr/bin/env python3
"""Entry point of the BIDS app: ``run.py BIDS_DIR OUT_DIR {participant,group}``."""

from bidsapp.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
