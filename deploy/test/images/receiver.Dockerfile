# Stands in for jaegertracing/jaeger, which no Debian package has: OTLP in, traces out as JSON.
ARG BASE
FROM ${BASE}
COPY site /opt/site
COPY otlp_receiver.py /opt/otlp_receiver.py
ENV PYTHONPATH=/opt/site PYTHONUNBUFFERED=1
USER nobody
EXPOSE 4317 13133 16686
ENTRYPOINT ["python3", "/opt/otlp_receiver.py"]
