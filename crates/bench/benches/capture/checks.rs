//! The tests of `packet`: a benchmark has none of its own.

mod packet;

use std::time::Duration;

use packet::{Direction, Exchanges};

const SERVER: u16 = 8000;

fn packet(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x45, 0];
    bytes.extend((40 + payload.len() as u16).to_be_bytes());
    bytes.extend([0, 0, 0, 0, 64, 6, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1]);
    bytes.extend(from.to_be_bytes());
    bytes.extend(to.to_be_bytes());
    bytes.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x18, 0, 0, 0, 0, 0, 0]);
    bytes.extend(payload);
    bytes
}

#[test]
fn each_request_s_time_is_to_the_first_text() {
    let mut seen = Exchanges::of_server(SERVER);
    let at = Duration::from_millis;
    let request = |port| packet(port, SERVER, b"POST /v1/chat/completions HTTP/1.1\r\n\r\n{}");
    let reply = |port, text: &str| packet(SERVER, port, text.as_bytes());
    seen.add(Direction::Sent, at(1), &request(5));
    seen.add(Direction::Received, at(2), &request(5));
    seen.add(Direction::Sent, at(3), &request(6));
    seen.add(Direction::Received, at(4), &reply(5, r#"{"delta":{"content":""}}"#));
    seen.add(Direction::Received, at(5), &reply(6, r#"{"delta":{"content":""}} {"delta":{"cont"#));
    seen.add(Direction::Sent, at(6), &reply(6, r#"ent":" a"}}"#));
    seen.add(Direction::Received, at(7), &reply(6, r#"ent":" a"}}"#));
    seen.add(Direction::Received, at(9), &reply(5, r#"{"delta":{"content":"b"}}"#));
    seen.add(Direction::Received, at(10), &reply(5, r#"{"delta":{"content":"c"}}"#));
    // The same connection once more, and one that is another server's.
    seen.add(Direction::Sent, at(20), &request(5));
    seen.add(Direction::Received, at(21), &packet(9, 5, br#""content":"x""#));
    seen.add(Direction::Received, at(23), &reply(5, r#"{"delta":{"content":"d"}}"#));
    assert_eq!(seen.first_content_times(), [at(8), at(4), at(3)]);
}

#[test]
fn what_is_no_tcp_over_ipv4_is_left_out() {
    let seen = |reply: &[u8]| {
        let mut seen = Exchanges::of_server(SERVER);
        seen.add(Direction::Sent, Duration::ZERO, &packet(5, SERVER, b"POST / HTTP/1.1\r\n\r\n"));
        seen.add(Direction::Received, Duration::from_millis(1), reply);
        seen.first_content_times().len()
    };
    let whole = packet(SERVER, 5, br#"{"content":"x"}"#);
    assert_eq!(seen(&whole), 1);
    assert!((0..whole.len()).all(|length| seen(&whole[..length]) == 0), "cut off");
    for (at, byte) in [(0, 0x65), (0, 0x41), (9, 17), (32, 0x40), (32, 0xf0)] {
        let mut other = whole.clone();
        other[at] = byte;
        assert_eq!(seen(&other), 0, "byte {at} is {byte}");
    }
    // As loopback has them, where a packet is too long for the field.
    let mut huge = whole;
    huge[2..4].fill(0);
    assert_eq!(seen(&huge), 1);
}
