# The yardstick of measure.py: nginx with its stream module, which can say the line too, in an image made the same way.
#
#     docker build -t nullsmtpd-yardstick -f deploy/image/nginx.Dockerfile .

ARG DEBIAN=bookworm

FROM debian:${DEBIAN}-slim AS build
WORKDIR /build
# hadolint ignore=DL3008
RUN --mount=type=secret,id=apt,target=/etc/apt/sources.list.d/mirror.sources \
    --mount=type=secret,id=apt-conf,target=/etc/apt/apt.conf.d/99mirror \
    apt-get update -q \
    && apt-get install -qq -y --no-install-recommends libnginx-mod-stream nginx-light python3 >/dev/null \
    && rm -rf /var/lib/apt/lists/*
COPY deploy/image/libraries.py deploy/image/nginx.conf ./
RUN python3 libraries.py /image /usr/sbin/nginx /usr/lib/nginx/modules/ngx_stream_module.so \
    && install -D -m 644 nginx.conf /image/etc/nginx/nginx.conf

FROM scratch
COPY --from=build /image /
EXPOSE 2525
USER 65532:65532
ENTRYPOINT ["/usr/sbin/nginx", "-e", "stderr"]
