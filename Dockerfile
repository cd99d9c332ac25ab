# bmex as a container.
#
#   docker build -t bmex .
#   docker run --rm -u "$(id -u):$(id -g)" -v DATA:/bids:ro -v OUT:/out bmex /bids /out participant
#
# It needs no network, no home and no writable root file system, only /out (and /tmp).
# On x86 that has PyTorch with CUDA (6 GB; run it with --gpus all for a GPU). For another build give
# its requirement and the index of its wheels (see pytorch.org):
#   --build-arg TORCH=torch==2.13.0+cpu --build-arg TORCH_INDEX_URL=...   (CPU only, 2.4 GB)
#   --build-arg TORCH=torch==2.13.0+cu126 --build-arg TORCH_INDEX_URL=... (for an older driver)

ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS base
# A bare Debian will do as base image, too.
RUN command -v python3.11 >/dev/null \
    || (apt-get update \
        && apt-get install --yes --no-install-recommends python3.11 python3.11-venv \
        && rm -rf /var/lib/apt/lists/*)

FROM base AS build
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX_URL=
COPY . /src
RUN sh /src/scripts/install.sh /src "${TORCH}" "${TORCH_INDEX_URL}"

FROM base
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="bmex" \
      org.opencontainers.image.description="Tissue-aware enhancement of structural brain MRI, a BIDS App" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.authors="The bmex developers"
COPY --from=build /opt/bmex /opt/bmex
COPY --from=build /opt/templateflow /opt/templateflow
# HOME and the user's name: with any --user there may be neither. NO_ET: no look for newer versions.
ENV PATH=/opt/bmex/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    USER=bmex \
    LANG=C.UTF-8 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONNOUSERSITE=1 \
    TEMPLATEFLOW_HOME=/opt/templateflow \
    TEMPLATEFLOW_AUTOUPDATE=off \
    NO_ET=1
WORKDIR /tmp
USER 1000:1000
ENTRYPOINT ["bmex"]
