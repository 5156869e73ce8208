# An image with the program, the Python interpreter and nothing else: no shell, no package manager, no OpenSSL.
#
#     docker build -t nullsmtpd .    # Docker before version 23: with DOCKER_BUILDKIT=1
#     docker build -t nullsmtpd:relay --build-arg EXTRAS=relay .
#
# The build secrets are optional, for hosts that reach Debian and PyPI through mirrors; none is left in the image:
# apt is a .sources file, apt-conf an apt.conf, pip a pip.conf, ca a file of certificates that pip.conf may refer to.

# bookworm: Python 3.13 of trixie is larger, see deploy/image/README.md.
ARG DEBIAN=bookworm
# For the label. The build fails when the package has another version.
ARG VERSION=0.2.0

FROM debian:${DEBIAN}-slim AS build
WORKDIR /build
# Without versions: a Debian release has one version of each package, with all security fixes.
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
    export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_DEPS=1 PIP_ONLY_BINARY=:all: PIP_REQUIRE_HASHES=1 \
    && tools/bin/pip install -q -r requirements-build.txt \
    && tools/bin/pip install -q --target site -r requirements.txt ${EXTRAS:+-r "requirements-$EXTRAS.txt"}

COPY pyproject.toml README.md LICENSE ./
COPY nullsmtpd nullsmtpd
COPY deploy/image/*.py ./
# no_debug_ranges: byte code with lines and without columns
RUN tools/bin/pip install -q --no-cache-dir --no-deps --no-index --no-build-isolation --no-compile \
        --upgrade --target site . \
    && python3 -X no_debug_ranges assemble.py site /image
ARG VERSION
RUN test "$(chroot /image /usr/bin/nullsmtpd --version)" = "nullsmtpd $VERSION"

FROM scratch
ARG VERSION
# org.opencontainers.image.source is for the publisher to set: docker build --label NAME=URL
LABEL org.opencontainers.image.title="nullsmtpd" \
      org.opencontainers.image.description="Answers port 25 of a host that receives no mail: 521, at once, and closes (RFC 7504)" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /image /
# With some engines ports below 1024 need a capability: listen on 2525 and publish it as 25.
ENV PATH=/usr/bin NULLSMTPD_LISTEN=:2525
EXPOSE 2525
USER 65532:65532
HEALTHCHECK --interval=30s --timeout=5s --start-period=1s CMD ["/usr/bin/nullsmtpd", "check"]
ENTRYPOINT ["/usr/bin/nullsmtpd"]
