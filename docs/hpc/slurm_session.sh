#!/bin/bash
# One session per task of a SLURM array. Started by submit.sh, which says what DATA, OUT, IMAGE and JOBS are.
#SBATCH --job-name=bidsapp
#SBATCH --cpus-per-task=2
#SBATCH --mem=4G
#SBATCH --time=00:20:00
set -eu
options=$(sed -n "${SLURM_ARRAY_TASK_ID}p" "$JOBS")
[ -n "$options" ] || { echo "$JOBS has no line ${SLURM_ARRAY_TASK_ID}" >&2; exit 64; }
# Intermediate files on the node's own disk: hundreds of MB per session that the shared file system need not see.
work=$(mktemp -d "${TMPDIR:-/tmp}/bidsapp.XXXXXX")
trap 'rm -rf "$work"' EXIT
# --containall: no home, no /tmp, no environment of the user's; the dataset is read-only. BIDSAPP_OPTIONS: your own.
# The dataset was validated once, by --list-jobs.
# shellcheck disable=SC2086
"${APPTAINER:-apptainer}" run --containall --cleanenv ${APPTAINER_OPTIONS:-} \
    -B "$DATA:/data:ro" -B "$OUT:/out" -B "$work:/work" -B "$work:/tmp" "$IMAGE" \
    /data /out participant $options --skip-bids-validation --nprocs "${SLURM_CPUS_PER_TASK:-2}" -w /work ${BIDSAPP_OPTIONS:-}
