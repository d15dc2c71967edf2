# The image for those who have Docker; `cargo xtask image` makes the same without (docs/image.md).
#   docker build --build-arg REVISION=$(git rev-parse HEAD) --tag pointsman:0.1.0 .
FROM rust:1.95.0-slim-bookworm AS builder
WORKDIR /pointsman
COPY . .
RUN cargo rustc --locked --profile release --package pointsman --bin pointsman -- \
    -C target-feature=+crt-static -C strip=debuginfo --emit link=/pointsman/static

FROM scratch
ARG REVISION=unknown
LABEL org.opencontainers.image.title="pointsman" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=builder --chown=0:0 --chmod=0755 /pointsman/static /pointsman
WORKDIR /
USER 65532:65532
EXPOSE 9002/tcp 9003/tcp 9090/tcp
ENTRYPOINT ["/pointsman"]
