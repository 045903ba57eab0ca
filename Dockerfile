# Three images from one file:
#
#   docker build --target service -t anyo-service .      answers requests; no compiler, no training code
#   docker build --target trainer -t anyo-trainer .      makes artifacts
#   docker build --target ray --build-arg EXTRAS="--extra ray" -t anyo-ray .    a machine of a cluster of Ray
#
# --build-arg PYTHON=python@sha256:… takes the base image by its digest. --build-arg TORCH=gpu takes PyTorch's CUDA build and the GPU build of faiss. All images run as user 10001, with a
# read-only root if asked (they write to /artifacts, /data and /tmp only). docs/serving/docker.md explains the layers.
ARG PYTHON=python:3.11.13-slim-bookworm
FROM ${PYTHON} AS base
ENV PATH=/app/.venv/bin:$PATH \
    HOME=/tmp \
    OMP_WAIT_POLICY=PASSIVE \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
RUN useradd --system --uid 10001 --home-dir /tmp --shell /usr/sbin/nologin anyo \
    && install --directory --owner anyo /artifacts /data
WORKDIR /app

# The environment, made by the same program as on a laptop: it never takes CUDA packages for TORCH=cpu. It depends on
# the pins and their hashes only, so a change of code does not make it again. Tests, headers and tools of other packages go.
FROM base AS build
ARG TORCH=cpu
ARG EXTRAS="--extra otel"
ENV PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1
COPY pyproject.toml constraints.txt requirements.lock LICENSE README.md anyo.py ./
COPY scripts/setup.py scripts/
RUN mkdir index modeling service training \
    && python3 scripts/setup.py --torch "$TORCH" $EXTRAS \
    && cd .venv/lib/python3.11/site-packages \
    && rm -rf torch/include torch/share torch/test torch/lib/*test*.so torch/bin/protoc* \
    && find . -type d \( -name tests -o -name test \) -prune -exec rm -rf {} +

# What serving never imports (a test holds this list to the imports), and the tools that installed the rest.
FROM build AS serving
ARG EXTRAS="--extra otel"
RUN python -m pip uninstall --quiet --yes \
      editables hatchling markdown scipy tensorboard tensorboard-data-server tomlkit trove-classifiers uv werkzeug \
    && case "$EXTRAS" in *qdrant*) ;; *) python -m pip uninstall --quiet --yes grpcio ;; esac \
    && python -m pip uninstall --quiet --yes setuptools pip

FROM base AS service
COPY --from=serving /app/.venv .venv
COPY pyproject.toml LICENSE anyo.py ./
COPY scripts/load.py scripts/
COPY index index
COPY modeling modeling
COPY service service
# What a relative path would write into data/ goes to the volume.
RUN ln -s /data data && python -m compileall -q index modeling service
USER 10001
ENV ANYO_HOST=0.0.0.0 \
    ANYO_PORT=8000 \
    ANYO_STORE=sqlite:////data/histories.sqlite
EXPOSE 8000
VOLUME ["/data"]
# Readiness: healthy means that requests are answered. The model may take a while to load, hence the start period.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
  CMD ["python", "-I", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"ANYO_PORT\"]}/readyz', timeout=4)"]
ENTRYPOINT ["python", "-m", "service"]

# Machines of a cluster of Ray: `ray start` is what KubeRay runs in it.
FROM base AS ray
COPY --from=build /app/.venv .venv
COPY pyproject.toml LICENSE anyo.py ./
COPY index index
COPY modeling modeling
COPY service service
RUN ln -s /data data && python -m compileall -q index modeling service
USER 10001
VOLUME ["/data"]
CMD ["ray", "--help"]

FROM base AS trainer
COPY --from=build /app/.venv .venv
COPY pyproject.toml constraints.txt LICENSE anyo.py ./
COPY index index
COPY modeling modeling
COPY training training
RUN ln -s /data data && python -m compileall -q index modeling training
USER 10001
VOLUME ["/artifacts", "/data"]
ENTRYPOINT ["python", "-m", "training"]
