# Stands in for redis, prom/prometheus and prom/node-exporter: Debian's servers under the paths of the upstream images.
FROM deskmate-standin-services
RUN ln -s prometheus-node-exporter /bin/node_exporter && ln -s busybox /bin/wget
