//! One request's events on their way from the engine thread to its client: [`EventSink`] is the engine's end,
//! [`EventStream`] the client's, with a bounded channel between them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Instant;

use plimsoll_core::{RequestId, TokenEvent};
use plimsoll_sched::AddError;
use tokio::sync::mpsc::{self, error::TrySendError};

use crate::admission::Permit;
use crate::inbox::Shared;

/// An event and when it happened: for `Scheduled` when its step was planned, else when its step's results were in;
/// one instant for all events of a step. From submission to `Scheduled` a request was queued, from there to its first
/// token its prompt was computed, after that it was decoded.
#[derive(Clone, Debug, PartialEq)]
pub struct TimedEvent {
    pub event: TokenEvent,
    pub at: Instant,
}

/// Why no more events come.
#[derive(Clone, Debug, PartialEq)]
pub enum StreamEnd {
    /// The last event was delivered: a token with a finish reason, or `Failed`.
    Finished,
    /// The scheduler cannot take the request.
    Refused(AddError),
    /// The client read too slowly and its channel ran full; the request was cancelled.
    Overrun,
    /// [`EngineHandle::shutdown`](crate::EngineHandle::shutdown) ended it.
    Shutdown,
    /// The device failed or the engine broke; [`EngineHandle::closed`](crate::EngineHandle::closed) tells how.
    EngineFault,
}

/// The events of one request. Dropping it cancels the request: its blocks are freed before the next step is planned.
#[derive(Debug)]
pub struct EventStream {
    id: RequestId,
    events: mpsc::Receiver<TimedEvent>,
    end: Arc<OnceLock<StreamEnd>>,
    shared: Arc<Shared>,
}

impl EventStream {
    /// The request that these events belong to.
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// The next event, or `None` when there are no more; then [`EventStream::end`] tells why. Cancel-safe.
    pub async fn recv(&mut self) -> Option<TimedEvent> {
        self.events.recv().await
    }

    /// Waits for at least one event and appends all that are there, at most `limit`, to `events`; returns how many.
    /// 0 means that there are no more. Cancel-safe. A reader that falls behind catches up in one call.
    pub async fn recv_many(&mut self, events: &mut Vec<TimedEvent>, limit: usize) -> usize {
        self.events.recv_many(events, limit).await
    }

    /// [`EventStream::recv`] for hand-written futures.
    pub fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<TimedEvent>> {
        self.events.poll_recv(context)
    }

    /// The next event if it is there already.
    pub fn try_recv(&mut self) -> Option<TimedEvent> {
        self.events.try_recv().ok()
    }

    /// [`EventStream::recv`] for threads outside an async runtime.
    pub fn blocking_recv(&mut self) -> Option<TimedEvent> {
        self.events.blocking_recv()
    }

    /// Why the events ended; `None` while the request is live. May be set while the last events are still unread.
    pub fn end(&self) -> Option<&StreamEnd> {
        self.end.get()
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        if self.end.get().is_none() {
            self.shared.cancel(self.id);
        }
    }
}

/// The engine's end of a stream. However it is lost, the client learns of it and the request's place is given back.
#[derive(Debug)]
pub(crate) struct EventSink {
    events: mpsc::Sender<TimedEvent>,
    end: Arc<OnceLock<StreamEnd>>,
    permit: Option<Permit>,
}

/// A channel for one request that holds `capacity` unread events.
pub(crate) fn channel(
    id: RequestId,
    capacity: usize,
    permit: Permit,
    shared: &Arc<Shared>,
) -> (EventSink, EventStream) {
    let (sender, receiver) = mpsc::channel(capacity);
    let end = Arc::new(OnceLock::new());
    let sink = EventSink { events: sender, end: Arc::clone(&end), permit: Some(permit) };
    (sink, EventStream { id, events: receiver, end, shared: Arc::clone(shared) })
}

impl EventSink {
    /// Ends the stream without another event.
    pub(crate) fn end(self, why: StreamEnd) {
        // The first reason stands; this sink is its only writer.
        let _ = self.end.set(why);
    }

    /// Delivers an event after which others follow.
    fn send(&mut self, event: TimedEvent) -> Result<(), TrySendError<TimedEvent>> {
        if let (TokenEvent::Scheduled { .. }, Some(permit)) = (&event.event, &mut self.permit) {
            permit.leave_queue();
        }
        self.events.try_send(event)
    }

    /// Delivers the last event. The request's place is free before its client can know: a client that keeps the engine
    /// exactly full by sending its next request upon the end of one is never refused.
    fn finish(mut self, event: TimedEvent) {
        // Where the reservation fails because nobody listens, the reason is never read.
        let slot = self.events.try_reserve().ok();
        let _ = self.end.set(if slot.is_some() { StreamEnd::Finished } else { StreamEnd::Overrun });
        drop(self.permit.take());
        if let Some(slot) = slot {
            slot.send(event);
        }
    }
}

impl Drop for EventSink {
    fn drop(&mut self) {
        // Only a fault loses a sink without a reason. A no-op where the stream was ended.
        let _ = self.end.set(StreamEnd::EngineFault);
    }
}

/// Whether nothing can follow an event.
pub(crate) fn is_last(event: &TokenEvent) -> bool {
    matches!(event, TokenEvent::Failed(_) | TokenEvent::Token { finish: Some(_), .. })
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// Handed over; or it was the last one, and what became of it changes nothing.
    Done,
    /// The client is too far behind. The request is to be cancelled.
    Overrun,
    /// Nobody listens. The request is to be cancelled.
    Abandoned,
}

/// The sinks of all live requests.
#[derive(Debug, Default)]
pub(crate) struct StreamTable {
    sinks: HashMap<RequestId, EventSink>,
}

impl StreamTable {
    pub(crate) fn len(&self) -> usize {
        self.sinks.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sinks.is_empty()
    }

    /// # Panics
    /// Where the id is live already: ids are never reused.
    pub(crate) fn insert(&mut self, id: RequestId, sink: EventSink) {
        match self.sinks.entry(id) {
            Entry::Vacant(place) => place.insert(sink),
            Entry::Occupied(_) => panic!("{id:?} was submitted twice; take ids from EngineHandle::next_request_id"),
        };
    }

    /// Forgets a request; false where it was not live.
    pub(crate) fn end(&mut self, id: RequestId, why: StreamEnd) -> bool {
        self.sinks.remove(&id).map(|sink| sink.end(why)).is_some()
    }

    /// Forgets all requests; returns their ids.
    pub(crate) fn end_all(&mut self, why: &StreamEnd) -> Vec<RequestId> {
        let ids = self.sinks.keys().copied().collect();
        self.sinks.drain().for_each(|(_, sink)| sink.end(why.clone()));
        ids
    }

    /// Hands an event to its client, and forgets the request unless more can follow.
    pub(crate) fn deliver(&mut self, id: RequestId, event: TimedEvent) -> Delivery {
        // A request that was cancelled while its step ran is not here: its events are nobody's.
        let Entry::Occupied(mut place) = self.sinks.entry(id) else { return Delivery::Done };
        if is_last(&event.event) {
            place.remove().finish(event);
            return Delivery::Done;
        }
        let lost = match place.get_mut().send(event) {
            Ok(()) => return Delivery::Done,
            Err(TrySendError::Full(_)) => Delivery::Overrun,
            Err(TrySendError::Closed(_)) => Delivery::Abandoned,
        };
        // Where nobody listens the reason is never read; it only must not be taken for a fault.
        place.remove().end(StreamEnd::Overrun);
        lost
    }
}
