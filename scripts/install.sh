#!/bin/sh
# Install the app's environment into /opt/venv of an image: install.sh cpu|cuda, in a folder with the locks.
# Used by the Dockerfile and by singularity-debian.def; pip's settings (PIP_EXTRA_INDEX_URL, ...) come from outside.
set -eu
# Some packages have files for this processor only.
[ "$(uname -m)" = x86_64 ] || {
    echo "The image is for x86-64, not $(uname -m): docker build --platform linux/amd64 (docs/images.md)." >&2
    exit 1
}
case "$1" in
    # By its full version, so that an index that only has CUDA builds fails here, at once, and not with many GB.
    cpu) sed -i 's/^torch==[0-9.]*/&+cpu/' requirements-torch.txt; more= ;;
    # ===: a CPU build of the same version, in a folder or an index of such builds, is another file.
    cuda) sed -i 's/^torch==/torch===/' requirements-torch.txt; more="-r requirements-cuda.txt" ;;
    *) echo "VARIANT is cpu or cuda, not $1" >&2; exit 1 ;;
esac
export PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
python3 -m venv /opt/venv
# Nothing is installed whose hash is not in the locks. --no-deps: they are complete, and leave out deepbet's graphical
# interface.
# shellcheck disable=SC2086
/opt/venv/bin/pip install --no-deps --require-hashes -r requirements-torch.txt $more \
    || { echo "No torch for $1: name the index that has it in PIP_EXTRA_INDEX_URL (docs/images.md)." >&2; exit 1; }
/opt/venv/bin/pip install --no-deps --require-hashes -r requirements.txt
# Folders and indexes of CPU builds must not make a CUDA image without CUDA.
/opt/venv/bin/python -c "import sys, torch; sys.exit((torch.version.cuda is not None) != (sys.argv[1] == 'cuda'))" "$1" \
    || { echo "This torch is not of the variant $1." >&2; exit 1; }
/opt/venv/bin/pip uninstall -y pip setuptools
rm -rf /opt/venv/lib/python3*/site-packages/torch/include /opt/venv/lib/python3*/site-packages/torch/test
find /opt/venv -name '*.a' -delete
python3 packages.py /opt/venv/lib/python3*/site-packages > packages.tsv
rm -f requirements*.txt packages.py install.sh
