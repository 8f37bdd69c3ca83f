# CPU image (default) and image for NVIDIA GPUs, several GB larger, from one file. `make image` builds and checks it; by hand:
#   docker build --build-arg PIP_EXTRA_INDEX_URL=ADDRESS --build-arg VERSION=$(cat version) -t bidsapp .
#   docker build --build-arg VARIANT=cuda --build-arg VERSION=$(cat version) -t bidsapp:cuda .
# ADDRESS: the CPU package index of the PyTorch project (docs/images.md).
# The base by digest, for a build that can be repeated: --build-arg BASE=python@sha256:...
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG VARIANT=cpu
# Settings of pip, for those who need them; not kept in the image.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_CERT
WORKDIR /opt/bidsapp
COPY requirements.txt requirements-torch.txt requirements-cuda.txt scripts/packages.py scripts/install.sh ./
RUN sh install.sh "${VARIANT}"
COPY run.py version LICENSE CITATION.cff ./
COPY bidsapp bidsapp
# For any user, whatever the umask of whoever cloned this.
RUN chmod -R a+rX . && python3 -m compileall -q bidsapp

FROM ${BASE}
ARG BASE
ARG VERSION=unknown
ARG REVISION=unknown
ARG VARIANT=cpu
LABEL org.opencontainers.image.title="bidsapp" \
      org.opencontainers.image.description="Brain mask, tissues and lesions from T1w, T2w and FLAIR scans of a BIDS dataset" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE}" \
      org.opencontainers.image.documentation="docs/usage.md" \
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
