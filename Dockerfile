# The responder in an image of its own, without a shell or a package manager:
#
#     docker build -t nullsmtpd .
#     docker build -t nullsmtpd --build-arg EXTRAS=metrics,relay .
#
# Where Debian or PyPI are reached through mirrors, the secrets apt (a .sources file), apt-conf (an apt.conf), pip (a
# pip.conf) and ca (certificates, /run/secrets/ca for that pip.conf) say how; they leave nothing in the image.

# Not trixie: its Python 3.13 and OpenSSL 3.5 make the image 3 MB larger, see the table in README.md.
ARG DEBIAN=bookworm

FROM debian:${DEBIAN}-slim AS build
WORKDIR /build
# No versions: Debian keeps one of each package in a release, the one with all security fixes.
# hadolint ignore=DL3008
RUN --mount=type=secret,id=apt,target=/etc/apt/sources.list.d/mirror.sources \
    --mount=type=secret,id=apt-conf,target=/etc/apt/apt.conf.d/99mirror \
    apt-get update -q \
    && apt-get install -qq -y --no-install-recommends binutils python3-venv >/dev/null \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv tools

ARG EXTRAS=""
COPY deploy/image/requirements*.txt ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca \
    set -e; IFS=,; for extra in $EXTRAS; do cat "requirements-$extra.txt" >>requirements.txt; done \
    && export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_DEPS=1 PIP_ONLY_BINARY=:all: PIP_REQUIRE_HASHES=1 \
    && tools/bin/pip install -q -r requirements-build.txt \
    && tools/bin/pip install -q --target site -r requirements.txt

COPY pyproject.toml README.md LICENSE ./
COPY nullsmtpd nullsmtpd
COPY deploy/image/*.py ./
RUN tools/bin/pip install -q --no-cache-dir --no-deps --no-index --no-build-isolation --no-compile --target site . \
    && python3 -X no_debug_ranges assemble.py site /image

# The label's version is not read from the package, so the build ends where it is another one.
ARG VERSION=0.1.0
RUN test "$(chroot /image /usr/bin/nullsmtpd --version)" = "nullsmtpd $VERSION"

FROM scratch
ARG VERSION=0.1.0
# And org.opencontainers.image.source is for whoever publishes the image to say: docker build --label NAME=URL
LABEL org.opencontainers.image.title="nullsmtpd" \
      org.opencontainers.image.description="Answers port 25 of a host that receives no mail: 521, at once, and closes (RFC 7504)" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /image /
# A port below 1024 takes a capability with some engines; publish 25 to this one.
ENV PATH=/usr/bin NULLSMTPD_LISTEN=:2525
EXPOSE 2525
USER 65532:65532
HEALTHCHECK --interval=30s --timeout=5s --start-period=1s CMD ["/usr/bin/nullsmtpd", "check"]
ENTRYPOINT ["/usr/bin/nullsmtpd"]
