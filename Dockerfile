# virnuc-async for GPUs (the default) and for CPUs:
#
#   docker build -t virnuc-async .
#   docker build -t virnuc-async:cpu --target cpu --build-arg TORCH_CPU_INDEX=ADDRESS .
#
# docs/how-to/containers.md says how to run it. It runs as any user, with a read-only root and without a network.

ARG BASE=debian:bookworm-slim

FROM ${BASE} AS system
COPY containers/install.sh /source/containers/
RUN /source/containers/install.sh system

FROM system AS build
# Indexes for pip; they stay in this stage, with the passwords that they may contain.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
RUN /source/containers/install.sh system python3-venv
COPY constraints.txt /source/

FROM build AS build-cpu
ARG TORCH_CPU_INDEX
RUN /source/containers/install.sh torch cpu
COPY . /source
RUN /source/containers/install.sh program

FROM build AS build-cuda
RUN /source/containers/install.sh torch cuda
COPY . /source
RUN /source/containers/install.sh program

FROM system AS runtime
ARG VERSION=0.1.0
ARG REVISION=""
LABEL org.opencontainers.image.title="virnuc-async" \
      org.opencontainers.image.description="Viral sequences in metagenomic reads and contigs, by VirNucPro's method" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# Downloaded models are looked up in /models. Nothing asks a server at run time, not even for news.
ENV PATH=/opt/virnuc-async/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    VIRNUC_ASYNC_CACHE_DIR=/models \
    HF_HUB_OFFLINE=1 \
    TRANSFORMERS_OFFLINE=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONNOUSERSITE=1 \
    LC_ALL=C.UTF-8
# No ENTRYPOINT: workflow engines run a shell of their own. No USER: they say which, and own the directories.
CMD ["virnuc-async", "--help"]

FROM runtime AS cpu
COPY --from=build-cpu /opt/virnuc-async /opt/virnuc-async

FROM runtime AS cuda
# Triton compiles the launchers of its kernels on the machine that runs them.
RUN /source/containers/install.sh system gcc libc6-dev python3-dev
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-cuda /opt/virnuc-async /opt/virnuc-async
