"""Run a command as root of a user, mount and process namespace of its own (started by scripts/images.py).

``python userns.py [--no-network] COMMAND...``; for machines where Apptainer may not make its own: needs root there.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

#: linux/sched.h
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x00020000, 0x10000000, 0x20000000, 0x40000000


def main() -> int:
    """Fork, unshare, map the ids from outside, run the command as the first process of the new namespace."""
    command, spaces = sys.argv[1:], CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID
    if command[0] == "--no-network":
        command, spaces = command[1:], spaces | CLONE_NEWNET
    ready, mapped = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(spaces):
            print(f"userns: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
            os._exit(1)
        os.write(ready[1], b"x")
        os.read(mapped[0], 1)
        os.setgid(0)
        os.setuid(0)
        first = os.fork()
        if first == 0:
            os.execvp(command[0], command)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]))
    os.close(ready[1])
    os.read(ready[0], 1)
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{child}/{name}").write_text("0 0 65536\n")
    os.write(mapped[1], b"x")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    raise SystemExit(main())
