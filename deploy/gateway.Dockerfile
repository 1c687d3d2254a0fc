# The gateway's image. Built without a network from compose/wheels/gateway, which `./deskmate compose-init` fills.
# Knows no setting and no secret: docker-compose.yml brings them.
FROM python:3.11.14-slim-bookworm AS base

# What only the build needs: uv installs from wheels, cyclonedx-py writes the bill of materials.
FROM base AS tools
RUN --mount=type=bind,source=deploy/locks,target=/locks \
    --mount=type=bind,source=compose/wheels/gateway,target=/wheels \
    pip install --quiet --no-index --find-links /wheels --no-deps --require-hashes --no-cache-dir --target /uv \
       -r /locks/uv.txt \
    && /uv/bin/uv venv --quiet --no-config --offline --python "$(command -v python)" /tools \
    && /uv/bin/uv pip install --quiet --no-config --offline --no-cache --python /tools --no-index --find-links /wheels \
       --no-deps --require-hashes -r /locks/image.txt

# Readable by everybody, whatever umask the checkout has.
FROM base AS code
COPY gateway /app/gateway
RUN chmod -R u=rwX,go=rX /app && python -m compileall -q /app

FROM base
RUN --mount=type=bind,from=tools,source=/tools,target=/tools \
    --mount=type=bind,source=deploy/locks,target=/locks \
    --mount=type=bind,source=compose/wheels/gateway,target=/wheels \
    --mount=type=bind,source=pyproject.toml,target=/pyproject.toml \
    rm -rf /usr/local/lib/python3.*/site-packages/* /usr/local/lib/python3.*/ensurepip /usr/local/bin/pip* \
    && /tools/bin/uv venv --quiet --no-config --offline --python "$(command -v python)" /opt/deskmate \
    && /tools/bin/uv pip install --quiet --no-config --offline --no-cache --compile-bytecode --python /opt/deskmate \
       --no-index --find-links /wheels --no-deps --require-hashes -r /locks/gateway.txt \
    && mkdir -p /usr/share/deskmate \
    && /tools/bin/cyclonedx-py environment --pyproject /pyproject.toml --output-reproducible \
       --output-file /usr/share/deskmate/sbom.cdx.json /opt/deskmate/bin/python
COPY --from=code /app /app

ENV PATH=/opt/deskmate/bin:/usr/local/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /app
USER 10001:10001
EXPOSE 8000
ENTRYPOINT ["python", "-m", "gateway"]
CMD ["serve"]

ARG VERSION
LABEL org.opencontainers.image.title="Deskmate gateway" \
      org.opencontainers.image.description="Knows people, keeps their conversations, shares the engine fairly." \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/python:3.11.14-slim-bookworm"
