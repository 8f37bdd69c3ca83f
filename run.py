#!/usr/bin/env python3
"""Entry point of the BIDS app: ``run.py BIDS_DIR OUT_DIR {participant,group}``."""

import os
import signal

from bidsapp.cli import main

if __name__ == "__main__":
    if os.getpid() == 1:  # the first process of a container ends on `docker stop` only where it says so itself
        signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    raise SystemExit(main())
