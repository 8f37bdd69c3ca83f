# Run a command in a root folder of its own: pivot.sh ROOT FOLDER COMMAND (started by scripts/images.py in userns.py).
# FOLDER is /w there; the files of this machine lie below /host.
set -e
ROOT=${1:?root folder} FOLDER=${2:?folder}
mount --make-rprivate /
mount --rbind "$ROOT" "$ROOT"
mkdir -p "$ROOT/.old" "$ROOT/w" "$ROOT/host"
mount --rbind / "$ROOT/host"
mount --bind "$FOLDER" "$ROOT/w"
mount -t proc proc "$ROOT/proc" 2>/dev/null || mount --rbind /proc "$ROOT/proc"
mount --rbind /dev "$ROOT/dev"
mount --rbind /sys "$ROOT/sys"
cd "$ROOT"
pivot_root . .old
cd /
umount -l /.old
exec /bin/bash -c "$3"
