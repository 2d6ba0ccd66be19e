//! Responses as a stream of server-sent events.
//!
//! One event a piece of text. All that the engine has brought since the last write goes out in one: a client that is
//! as fast as the engine reads token by token, and one that is slower costs fewer writes. The events are written into
//! a buffer that is used again, straight from borrowed text.

use std::convert::Infallible;
use std::pin::Pin;
use std::time::Duration;

use axum::body::Body;
use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::Response;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream;
use plimsoll_api::{STREAM_END, StreamOptions, Usage};
use serde::Serialize;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::choice::Piece;
use crate::error::ApiError;
use crate::generation::Generation;

/// How an endpoint writes the events of its streams.
pub(crate) trait StreamFormat: Send + 'static {
    /// The events that `piece` makes. `usage` goes into each, where the client wants that.
    fn write_piece(&mut self, piece: &Piece, usage: Option<Usage>, events: &mut EventBuffer);
    /// The one event with the usage of the whole request.
    fn write_usage(&mut self, usage: Usage, events: &mut EventBuffer);
}

/// Events on their way into one write.
pub(crate) struct EventBuffer(BytesMut);

/// A write seldom exceeds this; the allocation is used again once the client has what was in it.
const BUFFER_BYTES: usize = 4096;

impl EventBuffer {
    fn new() -> Self {
        Self(BytesMut::new())
    }

    /// `data: {...}`
    pub(crate) fn push(&mut self, data: &impl Serialize) {
        if self.0.capacity() < BUFFER_BYTES / 4 {
            self.0.reserve(BUFFER_BYTES);
        }
        self.0.put_slice(b"data: ");
        serde_json::to_writer((&mut self.0).writer(), data).expect("wire types are JSON, and memory takes all");
        self.0.put_slice(b"\n\n");
    }

    fn push_end(&mut self) {
        self.0.put_slice(b"data: ");
        self.0.put_slice(STREAM_END.as_bytes());
        self.0.put_slice(b"\n\n");
    }

    fn push_comment(&mut self) {
        self.0.put_slice(b": keep-alive\n\n");
    }

    fn take(&mut self) -> Bytes {
        self.0.split().freeze()
    }
}

/// Responds with the events of `generation` as they come.
pub(crate) fn respond(generation: Generation, format: impl StreamFormat, options: StreamOptions) -> Response {
    let keep_alive = generation.call().state.config.keep_alive;
    let deadline = generation.call().deadline;
    let events = Events {
        format,
        includes_usage: options.include_usage.unwrap_or(false),
        continuous_usage: options.continuous_usage_stats.unwrap_or(false),
        deadline,
        keep_alive,
        last_write: Instant::now(),
        alarm: Box::pin(sleep_until(deadline.min(Instant::now() + keep_alive))),
        buffer: EventBuffer::new(),
        generation: Some(generation),
    };
    let frames = stream::unfold(events, |mut events| async {
        let frame = events.next_frame().await?;
        Some((Ok::<_, Infallible>(frame), events))
    });
    let mut response = Response::new(Body::from_stream(frames));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

struct Events<F> {
    /// `None` once the stream has its end.
    generation: Option<Generation>,
    format: F,
    includes_usage: bool,
    continuous_usage: bool,
    deadline: Instant,
    keep_alive: Duration,
    last_write: Instant,
    /// Rings for the deadline or for a silence too long. Set anew when it rings, not at every write.
    alarm: Pin<Box<Sleep>>,
    buffer: EventBuffer,
}

impl<F: StreamFormat> Events<F> {
    /// The next write, or `None` after the last.
    async fn next_frame(&mut self) -> Option<Bytes> {
        loop {
            let generation = self.generation.as_mut()?;
            let outcome = if generation.has_pieces() || generation.is_done() {
                Ok(())
            } else {
                tokio::select! {
                    biased;
                    outcome = generation.advance() => outcome,
                    () = &mut self.alarm => {
                        if Instant::now() < self.deadline {
                            self.break_silence();
                            Ok(())
                        } else {
                            Err(generation.call().deadline_exceeded())
                        }
                    }
                }
            };
            self.write_pieces();
            match outcome {
                Err(error) => self.end_with(Some(error)),
                Ok(()) if self.generation.as_ref().is_some_and(Generation::is_done) => self.end_with(None),
                Ok(()) => {}
            }
            if !self.buffer.0.is_empty() {
                self.last_write = Instant::now();
                return Some(self.buffer.take());
            }
        }
    }

    fn write_pieces(&mut self) {
        let Some(generation) = &mut self.generation else { return };
        for piece in generation.take_pieces() {
            let usage = self.continuous_usage.then(|| generation.usage_after(piece.spent));
            self.format.write_piece(&piece, usage, &mut self.buffer);
        }
    }

    /// Writes the stream's end, and lets the request go.
    fn end_with(&mut self, error: Option<ApiError>) {
        let Some(generation) = self.generation.take() else { return };
        match error {
            Some(error) => {
                generation.call().entry.set_fault(&error);
                self.buffer.push(&error.body());
            }
            None if self.includes_usage => self.format.write_usage(generation.usage(), &mut self.buffer),
            None => {}
        }
        self.buffer.push_end();
    }

    /// The alarm rang before the deadline: either it has been silent too long, or a write came since it was set.
    fn break_silence(&mut self) {
        let now = Instant::now();
        if now - self.last_write >= self.keep_alive {
            self.buffer.push_comment();
            self.last_write = now;
        }
        self.alarm.as_mut().reset(self.deadline.min(self.last_write + self.keep_alive));
    }
}
