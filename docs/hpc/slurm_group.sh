#!/bin/bash
# The group level, when all tasks of the array have ended. Started by submit.sh.
#SBATCH --job-name=bidsapp-group
#SBATCH --cpus-per-task=2
#SBATCH --time=01:00:00
#SBATCH --open-mode=append
set -eu
# Options are read as a shell reads words, so that formulas can be quoted.
container=() own=() group=()
eval "container=(${APPTAINER_OPTIONS:-}) own=(${BIDSAPP_OPTIONS:-}) group=(${GROUP_OPTIONS:-})"
in_container() {
    "${APPTAINER:-apptainer}" run --containall --cleanenv ${container[@]+"${container[@]}"} \
        -B "$DATA:/data:ro" -B "$OUT:/out" -B "${SLURM_TMPDIR:-${TMPDIR:-/tmp}}:/tmp" "$IMAGE" \
        /data /out "$@"
}
# A task that was killed tells nothing by itself.
left=$(in_container participant --list-jobs --skip-bids-validation ${own[@]+"${own[@]}"}) || true
[ -z "$left" ] || echo "Not done (what became of the tasks: sacct -X -j ${ARRAYS:-ARRAY}):"$'\n'"$left"
in_container group --nprocs "${SLURM_CPUS_PER_TASK:-2}" ${group[@]+"${group[@]}"}
