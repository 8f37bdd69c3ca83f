# CPU image (default). Its torch comes from the CPU package index of the PyTorch project, named on the command line:
#   docker build --build-arg PIP_EXTRA_INDEX_URL=<that index> --build-arg VERSION=$(cat version) -t bidsapp .
# Image for NVIDIA GPUs, several GB larger:
#   docker build --build-arg VARIANT=cuda --build-arg VERSION=$(cat version) -t bidsapp:cuda .
# See docs/usage.md.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG VARIANT=cpu
# Settings of pip, for those who need them; not kept in the image.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_CERT
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python3 -m venv /opt/venv
WORKDIR /opt/bidsapp
COPY requirements.txt ./
# The CPU build is asked for by its full version, so that an index that only has CUDA builds fails here, at once.
# --no-deps: the lock is complete, and leaves out deepbet's graphical interface.
RUN case "${VARIANT}" in \
        cpu) torch=torch==2.13.0+cpu ;; \
        cuda) torch=torch==2.13.0 ;; \
        *) echo "VARIANT is cpu or cuda, not ${VARIANT}" >&2; exit 1 ;; \
    esac \
    && { /opt/venv/bin/pip install "${torch}" -c requirements.txt \
        || { echo "No ${torch}: give the index that has it, --build-arg PIP_EXTRA_INDEX_URL=..." >&2; exit 1; }; } \
    && /opt/venv/bin/pip install --no-deps -r requirements.txt \
    && /opt/venv/bin/pip uninstall -y pip setuptools \
    && rm -rf /opt/venv/lib/python3*/site-packages/torch/include /opt/venv/lib/python3*/site-packages/torch/test \
    && find /opt/venv -name '*.a' -delete
COPY run.py version LICENSE CITATION.cff ./
COPY bidsapp bidsapp
RUN python3 -m compileall -q bidsapp

FROM ${BASE}
ARG VERSION=unknown
ARG VARIANT=cpu
LABEL org.opencontainers.image.title="bidsapp" \
      org.opencontainers.image.description="Brain mask, tissues and lesions from T1w, T2w and FLAIR scans of a BIDS dataset" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.authors="bidsapp developers" \
      bidsapp.variant="${VARIANT}"
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/bidsapp /opt/bidsapp
# Any user, a read-only root and no network: what libraries want to write at home goes to /tmp; nothing asks for news.
ENV PATH=/opt/bidsapp:/opt/venv/bin:${PATH} \
    HOME=/tmp \
    USER=bidsapp \
    BIDSAPP_CONTAINER="bidsapp:${VERSION}" \
    DENO_DIR=/tmp/deno \
    DENO_NO_UPDATE_CHECK=1 \
    MPLCONFIGDIR=/tmp/matplotlib \
    NIPYPE_NO_ET=1 \
    NO_ET=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONNOUSERSITE=1 \
    PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /tmp
ENTRYPOINT ["/opt/venv/bin/python", "/opt/bidsapp/run.py"]
CMD ["--help"]
