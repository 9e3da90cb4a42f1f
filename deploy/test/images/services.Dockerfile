# Everything that the stack needs and that Debian packages, in one layer: one download, one unpack.
ARG BASE
FROM ${BASE}
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -qqy --no-install-recommends \
      etcd-client etcd-server prometheus python3 rabbitmq-server wget > /tmp/apt.log 2>&1 \
 || { tail -n 40 /tmp/apt.log; exit 1; }
RUN rm -rf /var/lib/apt/lists/* /var/cache/apt/* /tmp/apt.log
