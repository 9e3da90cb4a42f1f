# The image of Flux-KV: one static binary on an empty base, without root.
#
#   docker build -t flux-kv .
#   docker run -p 127.0.0.1:8080:8080 -e FLUX_PASSWORD=secret -v flux-data:/data flux-kv
#
# It needs no BuildKit. Other bases: --build-arg BUILD_IMAGE=… (Rust and a C compiler) and
# --build-arg RUN_IMAGE=… .
ARG BUILD_IMAGE=rust:1.95-slim-bookworm
ARG RUN_IMAGE=scratch

# What decides about dependencies, and nothing else: manifests, the lock file, and empty sources
# where cargo asks for some. The builder compares contents, so the layer below that compiles the
# dependencies is made again only when one of these changes.
FROM ${BUILD_IMAGE} AS manifests
WORKDIR /src
COPY . .
RUN find . -type f ! -name Cargo.toml ! -name Cargo.lock -delete \
 && for manifest in $(grep -rl --include=Cargo.toml '^\[package\]' .); do \
      folder=$(dirname "$manifest"); \
      mkdir -p "$folder/src"; \
      : > "$folder/src/lib.rs"; \
      echo 'fn main() {}' > "$folder/src/main.rs"; \
      if grep -q '^\[build-dependencies' "$manifest"; then echo 'fn main() {}' > "$folder/build.rs"; fi; \
    done \
 && find . -type d -empty -delete

FROM ${BUILD_IMAGE} AS build
# dist: slower to build, faster to run. `release` is the quick one.
ARG PROFILE=dist
WORKDIR /src
ENV CARGO_TARGET_DIR=/target \
    CARGO_INCREMENTAL=0 \
    RUSTFLAGS="-C target-feature=+crt-static"
COPY --from=manifests /src .
# The target is named so that the flags above spare build scripts and macros.
RUN cargo build --locked --profile "$PROFILE" --target "$(rustc -vV | sed -n 's/^host: //p')" -p flux \
 && rm -rf crates xtask
COPY . .
# Files come with the times they had outside, which may be older than the empty ones just compiled.
RUN find crates -type f -exec touch {} + \
 && cargo build --locked --profile "$PROFILE" --target "$(rustc -vV | sed -n 's/^host: //p')" -p flux \
 && mkdir -p /out/data \
 && cp "/target/$(rustc -vV | sed -n 's/^host: //p')/$PROFILE/flux" /out/flux

FROM ${RUN_IMAGE}
LABEL org.opencontainers.image.title="flux-kv" \
      org.opencontainers.image.description="A key-value store and an HTTP to gRPC gateway in one binary" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /out/flux /usr/local/bin/flux
# Empty, and there for its owner: a new volume takes it over.
COPY --from=build --chown=65532:65532 /out/data /data
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    FLUX_BIND=0.0.0.0 \
    FLUX_ADMIN_PORT=9180 \
    FLUX_DATA_DIR=/data
USER 65532:65532
WORKDIR /data
VOLUME /data
EXPOSE 7379 8080 9180 50052
STOPSIGNAL SIGTERM
# Patient with slow machines: a check that succeeds ends the start period at once.
HEALTHCHECK --interval=5s --timeout=15s --start-period=120s --retries=4 CMD ["/usr/local/bin/flux", "health"]
ENTRYPOINT ["/usr/local/bin/flux"]
CMD ["start"]
