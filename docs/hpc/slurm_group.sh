#!/bin/bash
# The group level, when all tasks of the array have ended. Started by submit.sh.
#SBATCH --job-name=bidsapp-group
#SBATCH --cpus-per-task=2
#SBATCH --mem=4G
#SBATCH --time=01:00:00
set -eu
# GROUP_OPTIONS is read as a shell reads words, so that formulas can be quoted.
eval "set -- ${GROUP_OPTIONS:-}"
# shellcheck disable=SC2086
"${APPTAINER:-apptainer}" run --containall --cleanenv ${APPTAINER_OPTIONS:-} -B "$DATA:/data:ro" -B "$OUT:/out" -B "${TMPDIR:-/tmp}:/tmp" \
    "$IMAGE" /data /out group "$@"
