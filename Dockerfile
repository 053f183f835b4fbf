# Images that train on processors (cpu, the default) and on NVIDIA GPUs (cuda), and a small one that serves a model (serve).
# docs/containers.md has the commands. The version of Python stands here and nowhere below.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS base
# Bytecode is compiled now, for the user below cannot write it
ENV PYTHONUNBUFFERED=1 \
    UV_SYSTEM_PYTHON=1 \
    UV_LINK_MODE=copy \
    UV_COMPILE_BYTECODE=1 \
    SPEECHTRAIN_CACHE=/cache
# A volume that is mounted on an empty folder takes its owner from it
RUN pip install --no-cache-dir 'uv>=0.9,<1' \
    && useradd --create-home --uid 1000 speech \
    && install --directory --owner=speech --group=speech /work /cache /artifacts /models
WORKDIR /src
# Dependencies are installed before the package, so that a change of the code installs none of them again
COPY pyproject.toml requirements.lock ./

FROM base AS wheel
COPY README.md LICENSE ./
COPY hydra_plugins hydra_plugins
COPY conf conf
COPY speechtrain speechtrain
RUN --mount=type=cache,target=/root/.cache/uv uv build --wheel --out-dir /wheels

FROM base AS serve
RUN --mount=type=cache,target=/root/.cache/uv uv pip install --torch-backend cpu --constraints requirements.lock --group light
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels uv pip install --no-deps /wheels/*.whl
USER 1000:1000
WORKDIR /work
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=1m \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://localhost:8080/health', timeout=4)"]
CMD ["python", "-m", "speechtrain.serve", "from=/models/model.zip", "host=0.0.0.0"]

FROM base AS cuda
# Triton compiles the launchers of its kernels
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --constraints requirements.lock --requirements pyproject.toml \
    --extra synth --extra beam --extra numbers --extra serve --extra postgresql --extra s3
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels uv pip install --no-deps /wheels/*.whl
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000
WORKDIR /work
CMD ["python", "-m", "speechtrain"]

FROM base AS cpu
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --torch-backend cpu --constraints requirements.lock --requirements pyproject.toml \
    --extra synth --extra beam --extra numbers --extra serve --extra postgresql --extra s3
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels uv pip install --no-deps /wheels/*.whl
USER 1000:1000
WORKDIR /work
CMD ["python", "-m", "speechtrain"]
