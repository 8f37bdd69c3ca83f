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
[ -e "$IMAGE" ] || { echo "$3: there is no such image." >&2; exit 66; }
case $DATA$(readlink -m "$2") in
    *[:,]*) echo "Apptainer binds no folder that has a colon or a comma in its name: $DATA, $2" >&2; exit 64 ;;
esac
if [ -f "$2/dataset_description.json" ] && ! grep -q '"DatasetType": *"derivative"' "$2/dataset_description.json"; then
    echo "$2 holds a raw dataset: name a folder of its own for the results, such as $1/derivatives/bidsapp." >&2
    exit 64
fi
mkdir -p "$2/logs/slurm"
OUT=$(cd "$2" && pwd)
shift 3
# Read as a shell reads words, so that they can be quoted.
container=() own=() apart=()
eval "container=(${APPTAINER_OPTIONS:-}) own=(${BIDSAPP_OPTIONS:-}) apart=(${GROUP_SBATCH_OPTIONS:-})"

# What says who pays and where: the group level is refused without it, as the array is.
both=() take=
for word in "$@"; do
    if [ -n "$take" ]; then both+=("$word") take=; continue; fi
    case $word in
        -A | -p | -q | -M | --account | --partition | --qos | --reservation | --clusters | --cluster) both+=("$word") take=1 ;;
        -A* | -p* | -q* | -M* | --account=* | --partition=* | --qos=* | --reservation=* | --clusters=* | --cluster=*) both+=("$word") ;;
    esac
done
# Not in the scripts: there --mem would contradict somebody's --mem-per-cpu.
memory() { case " $* ${!SBATCH_MEM*}" in *" --mem"* | *SBATCH_MEM*) ;; *) echo --mem=4G ;; esac; }

JOBS=$OUT/logs/slurm/jobs-$(date +%Y%m%dT%H%M%S)-$$.txt
export DATA OUT IMAGE JOBS
listed=0
"${APPTAINER:-apptainer}" run --containall --cleanenv ${container[@]+"${container[@]}"} -B "$DATA:/data:ro" -B "$OUT:/out" "$IMAGE" \
    /data /out participant --list-jobs ${own[@]+"${own[@]}"} > "$JOBS" || listed=$?
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

# An array's largest number is MaxArraySize - 1: several arrays for more, which share AT_ONCE.
most=$(scontrol show config 2> /dev/null | sed -n 's/^MaxArraySize *= *//p')
most=$((${most:-1001} - 1))
arrays=$(((count + most - 1) / most))
at_once=$(((${AT_ONCE:-100} + arrays - 1) / arrays))
ARRAYS='' BEFORE=0
export ARRAYS BEFORE
logs=${OUT//%/%%}/logs/slurm
while [ "$BEFORE" -lt "$count" ]; do
    tasks=$((count - BEFORE < most ? count - BEFORE : most))
    # shellcheck disable=SC2046
    array=$(sbatch --parsable --array="1-$tasks%$at_once" --output="$logs/%A_%a.txt" --export=ALL $(memory "$@") "$@" \
        "$here/slurm_session.sh") || break
    echo "$tasks session(s): array job ${array%%;*}. Logs: $OUT/logs/slurm"  # at once: the next may fail
    ARRAYS=${ARRAYS:+$ARRAYS,}${array%%;*} BEFORE=$((BEFORE + tasks))
done
if [ "$BEFORE" -lt "$count" ]; then
    echo "$((count - BEFORE)) session(s) were not submitted: see above, and submit again when the others are done." >&2
    [ "$BEFORE" -gt 0 ] || exit 1
    listed=1
fi
# afterany: the group level takes whatever sessions there are, and names those that failed or were killed.
# shellcheck disable=SC2046
group=$(sbatch --parsable --dependency="afterany:${ARRAYS//,/:}" --output="$logs/group_%j.txt" --export=ALL \
    $(memory ${apart[@]+"${apart[@]}"}) ${both[@]+"${both[@]}"} ${apart[@]+"${apart[@]}"} "$here/slurm_group.sh") || {
    echo "The array runs, but the group level was not submitted: run it when the array has ended." >&2
    exit 1
}
echo "Then the group level: job ${group%%;*}"
exit "$listed"
