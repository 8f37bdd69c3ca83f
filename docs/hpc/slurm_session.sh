#!/bin/bash
# One session per task of a SLURM array. Started by submit.sh, which says what DATA, OUT, IMAGE and JOBS are.
#SBATCH --job-name=bidsapp
#SBATCH --cpus-per-task=2
#SBATCH --time=00:20:00
#SBATCH --open-mode=append
set -eu
line=$((SLURM_ARRAY_TASK_ID + ${BEFORE:-0}))  # BEFORE: lines of the arrays before this one
options=$(sed -n "${line}p" "$JOBS")
[ -n "$options" ] || { echo "$JOBS has no line $line" >&2; exit 64; }
# Intermediate files on the node's own disk: hundreds of MB per session that the shared file system need not see.
work=$(mktemp -d "${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/bidsapp.XXXXXX")
trap 'rm -rf "$work"' EXIT
# Which GPU and how much memory the job has must be known behind --cleanenv, too.
for name in CUDA_VISIBLE_DEVICES SLURM_CPUS_ON_NODE SLURM_MEM_PER_CPU SLURM_MEM_PER_NODE; do
    [ -z "${!name:-}" ] || export "APPTAINERENV_$name=${!name}" "SINGULARITYENV_$name=${!name}"
done
# --containall: no home, no /tmp, no environment of the user's; the dataset is read-only. BIDSAPP_OPTIONS: your own.
# The dataset was validated once, by --list-jobs. Options are read as a shell reads words, so that they can be quoted.
container=() own=()
eval "container=(${APPTAINER_OPTIONS:-}) own=(${BIDSAPP_OPTIONS:-})"
# shellcheck disable=SC2086
"${APPTAINER:-apptainer}" run --containall --cleanenv ${container[@]+"${container[@]}"} \
    -B "$DATA:/data:ro" -B "$OUT:/out" -B "$work:/work" -B "$work:/tmp" "$IMAGE" \
    /data /out participant $options --skip-bids-validation --nprocs "${SLURM_CPUS_PER_TASK:-2}" -w /work \
    ${own[@]+"${own[@]}"}
