# For comparison in measure.py: nginx sending the same line by its stream module, in an image made the same way.
#
#     docker build -t nginx-521 -f deploy/image/nginx.Dockerfile .

ARG DEBIAN=bookworm

FROM debian:${DEBIAN}-slim AS build
WORKDIR /build
# hadolint ignore=DL3008
RUN --mount=type=secret,id=apt,target=/etc/apt/sources.list.d/mirror.sources \
    --mount=type=secret,id=apt-conf,target=/etc/apt/apt.conf.d/99mirror \
    apt-get update -q \
    && apt-get install -qq -y --no-install-recommends libnginx-mod-stream nginx-light >/dev/null \
    && rm -rf /var/lib/apt/lists/*
COPY deploy/image/nginx.conf ./
# With the shared libraries that the dynamic linker finds
RUN install -D -m 644 nginx.conf /image/etc/nginx/nginx.conf \
    && ldd /usr/sbin/nginx /usr/lib/nginx/modules/ngx_stream_module.so >linked \
    && grep -oP '/\S+(?= \(0x)' linked >libraries \
    && sort -u -o libraries libraries \
    && xargs -a libraries cp --parents --dereference -t /image \
        /usr/sbin/nginx /usr/lib/nginx/modules/ngx_stream_module.so

FROM scratch
COPY --from=build /image /
EXPOSE 2525
USER 65532:65532
ENTRYPOINT ["/usr/sbin/nginx", "-e", "stderr"]
