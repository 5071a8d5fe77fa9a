# syntax=docker/dockerfile:1
# The image of the job: `vlmflow`, its engine, MLflow, and nothing that builds or installs.
#
#     docker build -t vlmflow:cpu .
#     docker build -t vlmflow:cuda --build-arg VARIANT=cuda .
#
# docs/image.md says what each argument is for, what is inside, and where it writes.

# cpu or cuda: whose torch is installed (constraints/image-<variant>.txt).
ARG VARIANT=cpu
# Two images of one Python: the first has a C++ compiler and pip, the second is what we run on. To
# pin what a tag means, give the digest: python:3.11-slim-bookworm@sha256:<64 hex digits>.
ARG BUILDER_IMAGE=docker.io/library/python:3.11-bookworm
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm

# What others have made. It is a layer of its own, which a release of ours leaves as it is.
FROM ${BUILDER_IMAGE} AS dependencies
ARG VARIANT
# pip reads these from the environment; here they end with the stage. An index that asks for a
# password is not for them: mount a pip.conf as the secret `pip`, and a CA's file as `ca`.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
ARG PIP_FIND_LINKS
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_NO_INPUT=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python3 -m venv --without-pip /opt/vlmflow
COPY constraints/image-${VARIANT}.txt requirements.txt
# rouge-score has no wheel, and is made into one by the setuptools of the lock.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=secret,id=ca,target=/run/secrets/ca.pem \
    if [ -s /run/secrets/ca.pem ]; then export PIP_CERT=/run/secrets/ca.pem; fi; \
    awk '/^setuptools==/, !/\\$/' requirements.txt > setuptools.txt \
    && python3 -m pip --python /opt/vlmflow/bin/python install \
        --require-hashes --no-deps --only-binary :all: --requirement setuptools.txt \
    && python3 -m pip --python /opt/vlmflow/bin/python install \
        --require-hashes --no-deps --only-binary :all: --no-binary rouge-score \
        --no-build-isolation --requirement requirements.txt
COPY tools/image/trim_environment.py .
RUN python3 trim_environment.py /opt/vlmflow

# What is ours, for the same environment. Nothing is fetched any more.
FROM dependencies AS ours
COPY pyproject.toml setup.cfg README.md LICENSE ./
COPY engine engine
COPY components components
RUN python3 -m pip --python /opt/vlmflow/bin/python install \
        --no-index --no-deps --no-build-isolation --prefix /ours .
# The kernels of the CPU are for every CPU of the architecture, and take the best that it has.
RUN PYTHONPATH=$(echo /ours/lib/python3.*/site-packages) \
    /opt/vlmflow/bin/python -P -m vlmflow_engine.kernels.cpu.build
RUN cp -a /ours/. /opt/vlmflow && python3 -m pip --python /opt/vlmflow/bin/python check

FROM ${BASE_IMAGE}
ARG VARIANT
# Triton compiles one C file on a machine's first launch, against the driver that it finds there and
# Python's headers, which Docker's images of Python have and Debian's own Python has apart.
# NVIDIA_VISIBLE_DEVICES is not set: it would show every GPU to a pod that has asked for none.
RUN if [ "${VARIANT}" = cuda ]; then \
        headers=$(python3 -c "import sysconfig; print(sysconfig.get_path('include'))"); \
        if [ ! -f "${headers}/Python.h" ]; then debian=python3-dev; fi; \
        apt-get update \
        && apt-get install --yes --no-install-recommends gcc libc6-dev ${debian} \
        && rm -rf /var/lib/apt/lists/*; \
    fi
COPY tools/image/harden_base.py /tmp/
# Caches are the group's, and its group is root's: a cluster that gives a pod any user id keeps
# group 0 (OpenShift does).
RUN python3 /tmp/harden_base.py \
    && rm /tmp/harden_base.py \
    && useradd --uid 10001 --gid 0 --no-log-init --no-create-home \
        --home-dir /var/cache/vlmflow --shell /usr/sbin/nologin vlmflow \
    && install --directory --owner=10001 --group=0 --mode=2775 /var/cache/vlmflow
COPY --from=dependencies /opt/vlmflow /opt/vlmflow
COPY --from=ours /ours /opt/vlmflow
# All that is ever written lies below /var/cache/vlmflow and /tmp: the rest may be read-only.
ENV PATH=/opt/vlmflow/bin:${PATH} \
    HOME=/var/cache/vlmflow \
    TMPDIR=/tmp \
    XDG_CACHE_HOME=/var/cache/vlmflow \
    HF_HOME=/var/cache/vlmflow/huggingface \
    TRITON_CACHE_DIR=/var/cache/vlmflow/triton \
    MPLCONFIGDIR=/var/cache/vlmflow/matplotlib \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    GIT_PYTHON_REFRESH=quiet \
    HF_HUB_DISABLE_TELEMETRY=1 \
    MLFLOW_DISABLE_TELEMETRY=true
WORKDIR /var/cache/vlmflow
VOLUME /var/cache/vlmflow
ARG BASE_IMAGE
ARG VERSION
ARG REVISION
ARG SOURCE=https://github.com/vlmflow/vlmflow
LABEL org.opencontainers.image.title="vlmflow" \
      org.opencontainers.image.description="Vision-language models over S3 manifests (${VARIANT})" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.base.name="${BASE_IMAGE}"
# By number, so that a cluster can see that it is not root.
USER 10001:0
STOPSIGNAL SIGTERM
# As PID 1 it is the container's init, too: it reaps orphans and passes signals on.
ENTRYPOINT ["vlmflow"]
CMD ["--help"]
