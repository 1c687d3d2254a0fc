# The worker's image, for processors (ACCELERATOR=cpu) or NVIDIA cards (cuda). Built without a network from
# compose/wheels/worker, which `./deskmate compose-init` fills. Holds no model: docker-compose.yml mounts one.
#
# The base is Python's large one: vLLM compiles kernels while it runs (a C compiler), and its CPU build wants libnuma.
FROM python:3.11.14-bookworm AS base

# What only the build needs: uv installs from wheels, cyclonedx-py writes the bill of materials.
FROM base AS tools
RUN --mount=type=bind,source=deploy/locks,target=/locks \
    --mount=type=bind,source=compose/wheels/worker,target=/wheels \
    pip install --quiet --no-index --find-links /wheels --no-deps --require-hashes --no-cache-dir --target /uv \
       -r /locks/uv.txt \
    && /uv/bin/uv venv --quiet --no-config --offline --python "$(command -v python)" /tools \
    && /uv/bin/uv pip install --quiet --no-config --offline --no-cache --python /tools --no-index --find-links /wheels \
       --no-deps --require-hashes -r /locks/image.txt

# Readable by everybody, whatever umask the checkout has.
FROM base AS code
COPY worker /app/worker
RUN chmod -R u=rwX,go=rX /app && python -m compileall -q /app

FROM base
ARG ACCELERATOR=cpu
RUN --mount=type=bind,from=tools,source=/tools,target=/tools \
    --mount=type=bind,source=deploy/locks,target=/locks \
    --mount=type=bind,source=compose/wheels/worker,target=/wheels \
    --mount=type=bind,source=pyproject.toml,target=/pyproject.toml \
    rm -rf /usr/local/lib/python3.*/site-packages/* /usr/local/lib/python3.*/ensurepip /usr/local/bin/pip* \
    && /tools/bin/uv venv --quiet --no-config --offline --python "$(command -v python)" /opt/deskmate \
    && /tools/bin/uv pip install --quiet --no-config --offline --no-cache --compile-bytecode --python /opt/deskmate \
       --no-index --find-links /wheels --no-deps --require-hashes -r "/locks/${ACCELERATOR}.txt" \
    && mkdir -p /usr/share/deskmate \
    && /tools/bin/cyclonedx-py environment --pyproject /pyproject.toml --output-reproducible \
       --output-file /usr/share/deskmate/sbom.cdx.json /opt/deskmate/bin/python
COPY --from=code /app /app

# The person has no entry in /etc/passwd, and PyTorch asks for a name.
ENV PATH=/opt/deskmate/bin:/usr/local/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    HOME=/cache LOGNAME=deskmate
WORKDIR /app
USER 10002:10002
EXPOSE 8001
ENTRYPOINT ["python", "-m", "worker"]
CMD ["--model", "/model", "--host", "0.0.0.0"]

ARG VERSION
LABEL org.opencontainers.image.title="Deskmate worker (${ACCELERATOR})" \
      org.opencontainers.image.description="vLLM, planned for the hardware it finds." \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/python:3.11.14-bookworm"
