# Stands in for quay.io/coreos/etcd: the two programs on the path, no entry point.
ARG BASE
FROM ${BASE}
ENV ETCDCTL_API=3
EXPOSE 2379 2380
CMD ["etcd"]
