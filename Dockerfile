# ghn-train: `docker run ghn-train` meta-trains on an embedded default; with arguments it is `ghn train ...`.
# PIP_FIND_LINKS may name a folder of local wheels (e.g. a CPU build of torch) that pip prefers.
FROM python:3.11-slim-bookworm AS build
ARG PIP_FIND_LINKS=
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python -m venv /opt/ghn
COPY infra/lock/build.txt infra/lock/image.txt infra/lock/torch.txt ./lock/
RUN if [ -z "$PIP_FIND_LINKS" ]; then unset PIP_FIND_LINKS; fi; \
    /opt/ghn/bin/python -m pip install --require-hashes --no-deps -r lock/build.txt && \
    /opt/ghn/bin/python -m pip install --require-hashes --no-deps --no-build-isolation -r lock/image.txt && \
    /opt/ghn/bin/python -m pip install -c lock/torch.txt torch
COPY pyproject.toml README.md LICENSE ./
COPY ghn ghn
COPY pipelines pipelines
RUN /opt/ghn/bin/pip install --no-deps --no-build-isolation .

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="ghn-train" \
      org.opencontainers.image.description="Distributed meta-training of Graph HyperNetworks" \
      org.opencontainers.image.licenses="MIT"
RUN useradd --create-home --uid 1000 ghn && mkdir /data && chown ghn /data
COPY --from=build /opt/ghn /opt/ghn
ENV PATH=/opt/ghn/bin:$PATH PYTHONUNBUFFERED=1 DS_ACCELERATOR=cpu \
    NUMBA_CACHE_DIR=/home/ghn/.cache/numba
COPY infra/prepare.py infra/docker-entrypoint /opt/ghn/libexec/
USER ghn
WORKDIR /data
RUN python /opt/ghn/libexec/prepare.py
ENTRYPOINT ["/opt/ghn/libexec/docker-entrypoint"]
