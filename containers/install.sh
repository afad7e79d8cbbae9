#!/bin/sh
# The steps that install virnuc-async in a container of Debian; the Dockerfile and the Apptainer definition run them.
#
#   install.sh system [PACKAGE ...]    Python, what workflow engines need, and the packages named
#   install.sh torch cpu|cuda          the virtual environment, with torch
#   install.sh program                 the program with all extras, its container command and an example
#
# pip takes other indexes from PIP_INDEX_URL and PIP_EXTRA_INDEX_URL, and torch's builds for CPUs from TORCH_CPU_INDEX.
set -eu
umask 022 # whoever runs the container reads what root installs

place=/opt/virnuc-async
source=$(dirname "$0")/..
pip() {
    "$place/bin/python3" -m pip install --no-cache-dir --constraint "$source/constraints.txt" "$@"
}

install_system() {
    apt-get update
    # ps: Nextflow measures its tasks with it.
    apt-get install -y --no-install-recommends procps python3 "$@"
    rm -rf /var/lib/apt/lists/*
}

install_torch() {
    python3 -m venv "$place"
    # Alone, so that nothing else comes from this index. Without one, PyPI's build: it computes on CPUs, too, and
    # brings CUDA along.
    if [ "$1" = cpu ] && [ -n "${TORCH_CPU_INDEX:-}" ]; then
        pip --no-deps --index-url "$TORCH_CPU_INDEX" torch
    fi
    pip torch
}

install_program() {
    pip "${source}[all]"
    "$place/bin/python3" -m pip check
    install -m 755 "$source/scripts/virnucpro_cli.py" "$place/bin/"
    # Where the tasks of viral-pipelines call it.
    ln -sf "$place/bin/virnucpro_cli.py" /opt/virnucpro_cli.py
    install -D -m 644 -t "$place/share/virnuc-async" "$source/docs/examples/metagenome.fa.gz" "$source/LICENSE"
}

step=$1
shift
"install_$step" "$@"
