# A detector as a service, on the CPU:
#   docker build -t anople .
#   docker run -p 8000:8000 -v "$PWD/out/first:/detector:ro" anople
# Add -e ANOPLE_TOKEN=... and leave out :ro to teach products over HTTP; the user 10001 must then be able to write there.
# -e ANOPLE_PORT=9000 listens on another port, and asks there for its health.
# For an exported graph: docker build --build-arg EXTRAS=serve,export -t anople .
FROM python:3.11-slim

# torch first and pinned, in a layer of its own. PyPI's build also computes on GPUs and has gigabytes for that; where you
# know the address of a build for the CPU alone, add it here as --index-url.
RUN pip install --no-cache-dir torch==2.13.0

WORKDIR /app
COPY pyproject.toml README.md LICENSE model_card.md ./
COPY modeling_anople ./modeling_anople
COPY demo ./demo
COPY hub/__init__.py ./hub/__init__.py
COPY hub/publish ./hub/publish
ARG EXTRAS=serve
RUN pip install --no-cache-dir ".[${EXTRAS}]" && useradd --create-home --uid 10001 anople

USER 10001
# nothing is downloaded while it serves
ENV HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 ANOPLE_PORT=8000
EXPOSE 8000
VOLUME /detector
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
  CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ[\"ANOPLE_PORT\"]}/healthz', timeout=4)"]
# SIGTERM, as docker stop sends it: what is in hand is answered, for at most 30 seconds
STOPSIGNAL SIGTERM
ENTRYPOINT ["sh", "-c", "exec anople serve /detector --host 0.0.0.0 --port \"$ANOPLE_PORT\" \"$@\"", "anople"]
