#!/bin/bash
# submit.sh DATA OUT IMAGE [options of sbatch for the array ...]
# One SLURM task per session that is not done yet, at most AT_ONCE (100) at a time, then the group level.
# After failures, or when scans were added: the same again. BIDSAPP_OPTIONS="--denoise" gives the app options,
# GROUP_OPTIONS='--harmonize site' the group level, APPTAINER_OPTIONS="-B /models:/models:ro" Apptainer.
set -eu
[ $# -ge 3 ] || { sed -n 2,5p "$0" >&2; exit 64; }
here=$(cd "$(dirname "$0")" && pwd)
DATA=$(cd "$1" && pwd) IMAGE=$(readlink -f "$3")
mkdir -p "$2/logs/slurm"
OUT=$(cd "$2" && pwd)
shift 3
JOBS=$OUT/logs/slurm/jobs-$(date +%Y%m%dT%H%M%S)-$$.txt
export DATA OUT IMAGE JOBS
# shellcheck disable=SC2086
"${APPTAINER:-apptainer}" run --containall --cleanenv ${APPTAINER_OPTIONS:-} -B "$DATA:/data:ro" -B "$OUT:/out" "$IMAGE" \
    /data /out participant --list-jobs ${BIDSAPP_OPTIONS:-} > "$JOBS"
count=$(wc -l < "$JOBS")
if [ "$count" -eq 0 ]; then
    echo "Every session is done already."
    exit 0
fi
log=$OUT/logs/slurm/%A_%a.txt
array=$(sbatch --parsable --array="1-$count%${AT_ONCE:-100}" --output="$log" --export=ALL "$@" "$here/slurm_session.sh")
# afterany: the group level takes whatever sessions there are, and names those that failed.
group=$(sbatch --parsable --dependency="afterany:${array%%;*}" --output="$OUT/logs/slurm/group_%j.txt" --export=ALL "$here/slurm_group.sh")
echo "$count session(s): array job ${array%%;*}, then the group level: job ${group%%;*}. Logs: $OUT/logs/slurm"
