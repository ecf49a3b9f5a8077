FROM python:3.11-slim AS build
WORKDIR /src
RUN python -m venv /app
ENV PATH=/app/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# What changes seldom comes first: the layer of the dependencies outlives changes of the code.
COPY requirements.lock .
RUN pip install -r requirements.lock
COPY . .
RUN pip install --no-deps .

FROM python:3.11-slim
COPY --from=build /app /app
# Without DATABASE_URL the embedded PostgreSQL lives in DATA_DIR, so the volume is what must survive.
RUN useradd --system --create-home --home-dir /var/lib/saas-litellm saas-litellm
USER saas-litellm
WORKDIR /var/lib/saas-litellm
VOLUME /var/lib/saas-litellm
ENV PATH=/app/bin:$PATH PYTHONUNBUFFERED=1 HOST=0.0.0.0 PORT=8003 DATA_DIR=/var/lib/saas-litellm/data
EXPOSE 8003
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s CMD ["python", "-c", \
    "import os, urllib.request as web; web.urlopen('http://127.0.0.1:' + os.environ['PORT'] + '/health', timeout=2)"]
# In exec form the server is process 1 and gets the SIGTERM itself: it settles running calls, then ends.
STOPSIGNAL SIGTERM
ENTRYPOINT ["saas-litellm"]
CMD ["serve"]
