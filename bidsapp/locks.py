"""Many processes on one OUT_DIR, on one machine or on many: who is at work on what."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from bidsapp.errors import TryAgainError

FOLDER = ".locks"
#: What file systems without locks answer (some parallel ones, unless mounted with them).
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@dataclass
class Held:
    """A lock this process has until `release`, or until it ends in whatever way.

    Attributes
    ----------
    sound : bool
        False where the file system has no locks: then nothing is guarded.
    """

    path: Path
    descriptor: int
    sound: bool = True
    shared: bool = False

    def alone(self) -> bool:
        """Make a shared lock exclusive, where nobody else has it; else it stays shared."""
        try:
            fcntl.lockf(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        self.shared = False
        return True

    def release(self) -> None:
        """Give the lock back, and leave no file behind (a shared one's may be in use by others).

        Nor does it take another's: after `tidy` that name may be the lock of whoever came since.
        """
        if not self.shared and _is_still(self.path, self.descriptor):
            with contextlib.suppress(OSError):
                self.path.unlink()
            with contextlib.suppress(OSError):  # others may have locks in it
                self.path.parent.rmdir()
        os.close(self.descriptor)

    def __enter__(self) -> Held:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()


def take(out_dir: Path, name: str, *, shared: bool = False) -> Held:
    """Take the lock `name` of OUT_DIR; wait for whoever has it.

    Parameters
    ----------
    out_dir : Path
        Folder of the derivatives; the locks are empty files in its ``.locks``, there only while they are held (or left
        by a process that was killed: then they hold nothing back, and the last process to leave removes them).
    name : str
        ``sub-X_ses-Y``: its derivatives; ``report_sub-X``: its page; ``run``: shared by all processes at work.
    shared : bool
        Several may have it at once, but nobody exclusively.

    Raises
    ------
    TryAgainError
        The lock's file cannot be made.

    Notes
    -----
    POSIX record locks (fcntl): the kernel gives them back when the process ends, also by SIGKILL; they work across
    machines on NFS; and unlike flock's (and filelock's, which are those) they do not pass to forked workers, which may
    outlive the process that had them.
    """
    held = _lock(out_dir, name, wait=True, shared=shared)
    assert held is not None  # it has waited
    return held


def attempt(out_dir: Path, name: str, *, shared: bool = False) -> Held | None:
    """As `take`, but without waiting: None where another process has the lock."""
    return _lock(out_dir, name, wait=False, shared=shared)


def _lock(out_dir: Path, name: str, *, wait: bool, shared: bool) -> Held | None:
    path = out_dir / FOLDER / f"{name}.lock"
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # whoever left last has just removed the folder
            continue
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise TryAgainError(
                    f"{path}: too many files are open ({error.strerror}). Raise their number (ulimit -n 4096) and run"
                    " the same command again; or do fewer subjects at a time (--participant-label)."
                ) from error
            of_one_user = " All processes that use this folder need to be of one user."
            advice = of_one_user if error.errno in (errno.EACCES, errno.EPERM) else ""
            raise TryAgainError(f"{path}: cannot be written ({error.strerror}).{advice}") from error
        try:
            fcntl.lockf(descriptor, how)
        except OSError as error:
            if error.errno in UNSUPPORTED:
                return Held(path, descriptor, sound=False, shared=shared)
            os.close(descriptor)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return None
            if error.errno in (errno.ESTALE, errno.EDEADLK):
                continue
            raise TryAgainError(f"{path}: cannot be locked ({error}).") from error
        if _is_still(path, descriptor):
            return Held(path, descriptor, shared=shared)
        os.close(descriptor)  # its holder removed it while we waited: the lock is another file now


def tidy(out_dir: Path) -> None:
    """Remove what killed processes left half-written. Only for who is `Held.alone` in OUT_DIR."""
    for pattern in (".*.tmp", "logs/.*.tmp", "group_*/.*.tmp", "sub-*/**/.*.tmp"):
        for path in out_dir.glob(pattern):
            path.unlink(missing_ok=True)
    shutil.rmtree(out_dir / FOLDER, ignore_errors=True)


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False
