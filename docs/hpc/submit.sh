#!/bin/bash
# submit.sh DATA OUT IMAGE [options of sbatch ...]
# One SLURM task per session that is not done yet, at most AT_ONCE (100) at a time, then the group level.
# After failures, or when scans were added: the same again. BIDSAPP_OPTIONS="--denoise" gives the app options,
# GROUP_OPTIONS='--harmonize site' the group level, APPTAINER_OPTIONS="-B /models:/models:ro" Apptainer.
# The options of sbatch are the array's. Those of account, partition, QOS, reservation and cluster are the group
# level's, too; GROUP_SBATCH_OPTIONS="--partition=long --mem=8G" are its own, and come last.
set -eu
[ $# -ge 3 ] || { sed -n 2,7p "$0" >&2; exit 64; }
here=$(cd "$(dirname "$0")" && pwd)
DATA=$(cd "$1" && pwd)  # a line each: of two assignments on one, `set -e` sees the last alone
IMAGE=$(readlink -f "$3")
if [ -f "$2/dataset_description.json" ] && ! grep -q '"DatasetType": *"derivative"' "$2/dataset_description.json"; then
    echo "$2 holds a raw dataset: name a folder of its own for the results, such as $1/derivatives/bidsapp." >&2
    exit 64
fi
mkdir -p "$2/logs/slurm"
OUT=$(cd "$2" && pwd)
shift 3

# What says who pays and where: the group level is refused without it, as the array is.
both=() take=
for word in "$@"; do
    if [ -n "$take" ]; then both+=("$word") take=; continue; fi
    case $word in
        -A | -p | -q | -M | --account | --partition | --qos | --reservation | --clusters | --cluster) both+=("$word") take=1 ;;
        -A* | -p* | -q* | -M* | --account=* | --partition=* | --qos=* | --reservation=* | --clusters=* | --cluster=*) both+=("$word") ;;
    esac
done

JOBS=$OUT/logs/slurm/jobs-$(date +%Y%m%dT%H%M%S)-$$.txt
export DATA OUT IMAGE JOBS
listed=0
# shellcheck disable=SC2086
"${APPTAINER:-apptainer}" run --containall --cleanenv ${APPTAINER_OPTIONS:-} -B "$DATA:/data:ro" -B "$OUT:/out" "$IMAGE" \
    /data /out participant --list-jobs ${BIDSAPP_OPTIONS:-} > "$JOBS" || listed=$?
[ "$listed" -le 1 ] || exit "$listed"  # 1: some sessions cannot be read, which costs no others; all else ends it
count=$(wc -l < "$JOBS")
if [ "$listed" -eq 1 ]; then
    echo "Sessions that cannot be read are left out, or the list could not be made: see the messages above." >&2
fi
if [ "$count" -eq 0 ]; then
    [ "$listed" -eq 0 ] || { echo "Nothing is left to submit." >&2; exit 1; }
    echo "Every session is done already."
    exit 0
fi
log=$OUT/logs/slurm/%A_%a.txt
array=$(sbatch --parsable --array="1-$count%${AT_ONCE:-100}" --output="$log" --export=ALL "$@" "$here/slurm_session.sh")
echo "$count session(s): array job ${array%%;*}. Logs: $OUT/logs/slurm"  # at once: the next line may fail
# afterany: the group level takes whatever sessions there are, and names those that failed.
# shellcheck disable=SC2086
group=$(sbatch --parsable --dependency="afterany:${array%%;*}" --output="$OUT/logs/slurm/group_%j.txt" --export=ALL \
    ${both[@]+"${both[@]}"} ${GROUP_SBATCH_OPTIONS:-} "$here/slurm_group.sh") || {
    echo "The array runs, but the group level was not submitted: run it when the array has ended." >&2
    exit 1
}
echo "Then the group level: job ${group%%;*}"
exit "$listed"
