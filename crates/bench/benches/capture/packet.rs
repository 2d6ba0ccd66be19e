//! From captured packets to the time of each request's first content: IPv4, TCP, and just enough of HTTP.
//!
//! It knows one loopback device, so packets come in order and none is lost or sent again.

use std::collections::HashMap;
use std::time::Duration;

/// Which of the two times a packet is seen on loopback: when it is sent, and when it is received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Sent,
    Received,
}

/// What the events of a chat stream have before their text; the first event's is empty.
const CONTENT: &[u8] = br#""content":""#;
const REQUEST: &[u8] = b"POST ";

/// One request and as much of its reply as matters.
#[derive(Debug)]
struct Exchange {
    sent: Duration,
    reply: Vec<u8>,
    first_content: Option<Duration>,
}

/// The exchanges of one server, in the order of their requests.
#[derive(Debug)]
pub(crate) struct Exchanges {
    server: u16,
    exchanges: Vec<Exchange>,
    /// The last exchange of each client's port.
    open: HashMap<u16, usize>,
}

impl Exchanges {
    pub(crate) fn of_server(port: u16) -> Self {
        Self { server: port, exchanges: Vec::new(), open: HashMap::new() }
    }

    /// Takes an IP packet, seen at `at`. What does not belong to the server is left out.
    pub(crate) fn add(&mut self, direction: Direction, at: Duration, packet: &[u8]) {
        let Some(segment) = segment(packet) else { return };
        match direction {
            // A request's first packet holds its first byte.
            Direction::Sent if segment.to == self.server && segment.payload.starts_with(REQUEST) => {
                self.open.insert(segment.from, self.exchanges.len());
                self.exchanges.push(Exchange { sent: at, reply: Vec::new(), first_content: None });
            }
            Direction::Received if segment.from == self.server => {
                let exchange = self.open.get(&segment.to).map(|&index| &mut self.exchanges[index]);
                if let Some(exchange) = exchange.filter(|exchange| exchange.first_content.is_none()) {
                    exchange.reply.extend_from_slice(segment.payload);
                    exchange.first_content = has_content(&exchange.reply).then_some(at);
                }
            }
            _ => (),
        }
    }

    /// From the first byte of each request to the first content of its reply. Requests without content have none.
    pub(crate) fn first_content_times(&self) -> Vec<Duration> {
        let time = |exchange: &Exchange| Some(exchange.first_content?.saturating_sub(exchange.sent));
        self.exchanges.iter().filter_map(time).collect()
    }
}

/// Whether any event has text.
fn has_content(reply: &[u8]) -> bool {
    let text = |window: &[u8]| window.starts_with(CONTENT) && window[CONTENT.len()] != b'"';
    reply.windows(CONTENT.len() + 1).any(text)
}

#[derive(Debug, PartialEq, Eq)]
struct Segment<'a> {
    from: u16,
    to: u16,
    payload: &'a [u8],
}

/// The TCP segment of an IPv4 packet (RFC 791, RFC 9293); None if it is no such packet, or cut off.
fn segment(packet: &[u8]) -> Option<Segment<'_>> {
    const TCP: u8 = 6;
    let first = *packet.first()?;
    let header = usize::from(first & 0xf) * 4;
    if first >> 4 != 4 || header < 20 || *packet.get(9)? != TCP {
        return None;
    }
    let number = |bytes: &[u8], at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let length = usize::from(number(packet, 2)?);
    // A length of 0 is that of a packet too long for the field, as loopback may have.
    let tcp = packet.get(header..if length == 0 { packet.len() } else { length })?;
    let data = usize::from(tcp.get(12)? >> 4) * 4;
    if data < 20 {
        return None;
    }
    Some(Segment { from: number(tcp, 0)?, to: number(tcp, 2)?, payload: tcp.get(data..)? })
}
