# Two images: ghn-train (the last stage, hence the default) has every `ghn` command; `--target platform` adds Airflow's parts and
# MLflow's server. `docker run ghn-train` meta-trains on an embedded default; docs/how-to/containers.md has the rest.
#
# PIP_FIND_LINKS: a folder or page of wheels that pip looks into, too; with a CPU build of torch there the image is small.
# ACCELERATOR=cuda: for GPU nodes; without PIP_FIND_LINKS, since the registry's torch is the CUDA build.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG PIP_FIND_LINKS=
ARG ACCELERATOR=cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python -m venv /opt/ghn
COPY infra/lock/build.txt infra/lock/train.txt infra/lock/torch.txt lock/
RUN if [ -z "$PIP_FIND_LINKS" ]; then unset PIP_FIND_LINKS; fi; pip="/opt/ghn/bin/python -m pip install" && \
    $pip --require-hashes --no-deps -r lock/build.txt && \
    $pip --require-hashes --no-deps --no-build-isolation -r lock/train.txt && \
    $pip -c lock/torch.txt torch
# What only compilers and torch's own tests use.
RUN (cd /opt/ghn/lib/python3.11/site-packages/torch && rm -rf test include bin/protoc* bin/*Test bin/test_*) && \
    if [ "$ACCELERATOR" = cuda ]; then /opt/ghn/bin/python -c 'import torch, sys; sys.exit(torch.version.cuda is None)' || \
    { echo "ACCELERATOR=cuda, but this torch is a CPU build: leave PIP_FIND_LINKS out" >&2; exit 1; }; fi
COPY pyproject.toml README.md LICENSE ./
COPY ghn ghn
COPY pipelines pipelines
RUN /opt/ghn/bin/python -m pip install --no-deps --no-build-isolation . && /opt/ghn/bin/python -m pip uninstall --yes --quiet pip

FROM ${BASE} AS train-image
ARG ACCELERATOR=cpu
RUN useradd --create-home --uid 1000 ghn && mkdir /data && chown ghn /data && \
    rm -rf /usr/local/bin/pip* /usr/local/lib/python3.11/site-packages/pip*
COPY --from=build /opt/ghn /opt/ghn
ENV PATH=/opt/ghn/bin:$PATH PYTHONUNBUFFERED=1 DS_ACCELERATOR=$ACCELERATOR \
    NUMBA_CACHE_DIR=/home/ghn/.cache/numba TORCH_EXTENSIONS_DIR=/home/ghn/.cache/torch_extensions \
    MLFLOW_DISABLE_TELEMETRY=true
COPY infra/prepare.py infra/docker/entrypoint infra/docker/embedded infra/docker/healthy /opt/ghn/libexec/
USER ghn
WORKDIR /data
RUN DS_ACCELERATOR=cpu python /opt/ghn/libexec/prepare.py
VOLUME /data
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s CMD ["/opt/ghn/libexec/healthy"]
ENTRYPOINT ["/opt/ghn/libexec/entrypoint"]
ARG VERSION=0.1.0
ARG GIT_COMMIT=
ARG CREATED=
ENV GHN_GIT_COMMIT=$GIT_COMMIT
LABEL org.opencontainers.image.title="ghn-train" \
      org.opencontainers.image.description="Meta-training, evaluation and serving of Graph HyperNetworks" \
      org.opencontainers.image.documentation="docs/how-to/containers.md" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.revision=$GIT_COMMIT \
      org.opencontainers.image.created=$CREATED

FROM ${BASE} AS build-platform
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python -m venv /opt/platform
COPY infra/lock/build.txt infra/lock/platform.txt lock/
RUN /opt/platform/bin/python -m pip install --require-hashes --no-deps -r lock/build.txt && \
    /opt/platform/bin/python -m pip install --require-hashes --no-deps --no-build-isolation -r lock/platform.txt && \
    /opt/platform/bin/python -m pip uninstall --yes --quiet pip && ln -s /opt/ghn/bin/ghn /opt/platform/bin/ghn

FROM train-image AS platform
COPY --from=build-platform /opt/platform /opt/platform
COPY dags /opt/ghn/dags
COPY infra/docker/setup-airflow /opt/ghn/libexec/
ENV PATH=/opt/platform/bin:$PATH AIRFLOW_HOME=/data/airflow AIRFLOW__CORE__DAGS_FOLDER=/opt/ghn/dags \
    AIRFLOW__CORE__LOAD_EXAMPLES=False
LABEL org.opencontainers.image.title="ghn-platform" \
      org.opencontainers.image.description="Airflow with the DAGs of ghn, and MLflow's server"
HEALTHCHECK NONE
ENTRYPOINT []
CMD ["airflow", "--help"]

FROM train-image AS train
