# Stands in for rabbitmq:…-management: user rabbitmq, data in /var/lib/rabbitmq, management and
# metrics on, log to standard output.
ARG BASE
FROM ${BASE}
RUN rm -rf /var/lib/rabbitmq/* /var/lib/rabbitmq/.erlang.cookie \
 && chown rabbitmq:rabbitmq /var/lib/rabbitmq \
 && echo '[rabbitmq_management,rabbitmq_prometheus].' > /etc/rabbitmq/enabled_plugins
ENV HOME=/var/lib/rabbitmq \
    LANG=C.UTF-8 \
    PATH=/usr/lib/rabbitmq/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    RABBITMQ_LOGS=-
USER rabbitmq
VOLUME /var/lib/rabbitmq
EXPOSE 5672 15672 15692
CMD ["rabbitmq-server"]
