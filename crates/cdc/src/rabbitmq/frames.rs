//! AMQP 0-9-1 as far as a publisher speaks it, as bytes: methods and content that it sends, frames
//! that it hears. No I/O. What is not understood is an error or is passed over, never a panic.
//!
//! The client library makes a future, a promise and several allocations of each message, and wakes a
//! thread of its own for it, which is most of what publishing an event would cost. Written into one
//! buffer, a message costs hardly more than its bytes.

/// What a client says first.
pub(super) const GREETING: &[u8] = b"AMQP\x00\x00\x09\x01";
/// The only channel there is.
pub(super) const CHANNEL: u16 = 1;
/// Largest frame that is sent or taken, in bytes of payload; peers may agree on less.
pub(super) const FRAME_BYTES_MAX: u32 = 128 * 1024;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
const END: u8 = 0xce;
/// Type, channel and length before the payload of a frame, and its end.
const HEAD_BYTES: usize = 7;
pub(super) const OVERHEAD_BYTES: usize = HEAD_BYTES + 1;
/// The class of content.
const BASIC: u16 = 60;

/// Which method it is: class and number.
type Method = (u16, u16);

const START: Method = (10, 10);
const START_OK: Method = (10, 11);
const TUNE: Method = (10, 30);
const TUNE_OK: Method = (10, 31);
const OPEN: Method = (10, 40);
const OPEN_OK: Method = (10, 41);
const CLOSE: Method = (10, 50);
pub(super) const CLOSE_OK: Method = (10, 51);
const BLOCKED: Method = (10, 60);
const UNBLOCKED: Method = (10, 61);
const CHANNEL_OPEN: Method = (20, 10);
const CHANNEL_OPEN_OK: Method = (20, 11);
const CHANNEL_CLOSE: Method = (20, 40);
const PUBLISH: Method = (BASIC, 40);
const RETURN: Method = (BASIC, 50);
const ACK: Method = (BASIC, 80);
const NACK: Method = (BASIC, 120);
const SELECT: Method = (85, 10);
const SELECT_OK: Method = (85, 11);

/// What a broker says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Asks who is there.
    Start,
    /// Proposes limits.
    Tune(Limits),
    /// The connection is open.
    Open,
    /// The channel is open.
    ChannelOpen,
    /// Messages will be confirmed.
    Confirming,
    /// A message, or all up to it, is safe; or is not.
    Confirm {
        tag: u64,
        is_multiple: bool,
        is_refused: bool,
    },
    /// No queue is bound for a message.
    Returned { text: String, routing_key: String },
    /// Takes nothing for now.
    Blocked(String),
    /// Takes messages again.
    Unblocked,
    /// Ends the channel, or all of the connection.
    Closed {
        code: u16,
        text: String,
        is_all: bool,
    },
    /// Takes leave as well.
    Gone,
    /// Anything else that needs no answer.
    Other,
}

/// What both sides agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) channels: u16,
    pub(super) frame_bytes: u32,
    pub(super) heartbeat_seconds: u16,
}

impl Limits {
    /// What this side agrees to if the other proposes `self`; 0 stands for no limit.
    pub(super) fn agreed(self, heartbeat_seconds: u16) -> Self {
        let least = |theirs: u32, ours: u32| match (theirs, ours) {
            (0, limit) | (limit, 0) => limit,
            (theirs, ours) => theirs.min(ours),
        };
        let heartbeat = least(self.heartbeat_seconds.into(), heartbeat_seconds.into());
        Self {
            channels: self.channels,
            frame_bytes: least(self.frame_bytes, FRAME_BYTES_MAX),
            heartbeat_seconds: u16::try_from(heartbeat).unwrap_or(heartbeat_seconds),
        }
    }
}

/// Why bytes are not what a broker says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Garbled {
    /// A frame is longer than agreed.
    #[error("a frame is longer than agreed")]
    Long,
    /// A frame does not end where it should, or a method is cut.
    #[error("a frame is not as the protocol has it")]
    Malformed,
}

/// Reads a frame from the beginning of `input`; tells it and its length. Nothing if it is not whole.
pub(super) fn read(input: &[u8], frame_bytes_max: u32) -> Result<Option<(Heard, usize)>, Garbled> {
    let Some((head, rest)) = input.split_at_checked(HEAD_BYTES) else {
        return Ok(None);
    };
    let mut head = Fields(head);
    let (kind, _channel, length) = head
        .u8()
        .zip(head.u16())
        .zip(head.u32())
        .map(|((kind, channel), length)| (kind, channel, length))
        .ok_or(Garbled::Malformed)?;
    if frame_bytes_max < length {
        return Err(Garbled::Long);
    }
    let length = usize::try_from(length).map_err(|_| Garbled::Long)?;
    let Some((payload, rest)) = rest.split_at_checked(length) else {
        return Ok(None);
    };
    match rest.first() {
        None => return Ok(None),
        Some(&END) => {}
        Some(_) => return Err(Garbled::Malformed),
    }
    let heard = match kind {
        METHOD => method(Fields(payload)).ok_or(Garbled::Malformed)?,
        // Of a returned message, which is known by its method, and heartbeats.
        HEADER | BODY | HEARTBEAT => Heard::Other,
        _ => return Err(Garbled::Malformed),
    };
    Ok(Some((heard, length + OVERHEAD_BYTES)))
}

/// Reads a method; `None`: it is cut.
fn method(mut fields: Fields<'_>) -> Option<Heard> {
    let method = (fields.u16()?, fields.u16()?);
    Some(match method {
        START => Heard::Start,
        TUNE => Heard::Tune(Limits {
            channels: fields.u16()?,
            frame_bytes: fields.u32()?,
            heartbeat_seconds: fields.u16()?,
        }),
        OPEN_OK => Heard::Open,
        CHANNEL_OPEN_OK => Heard::ChannelOpen,
        SELECT_OK => Heard::Confirming,
        ACK | NACK => Heard::Confirm {
            tag: fields.u64()?,
            is_multiple: fields.u8()? & 1 == 1,
            is_refused: method == NACK,
        },
        RETURN => {
            let _code = fields.u16()?;
            let text = fields.text()?;
            let _exchange = fields.text()?;
            Heard::Returned {
                text,
                routing_key: fields.text()?,
            }
        }
        BLOCKED => Heard::Blocked(fields.text()?),
        UNBLOCKED => Heard::Unblocked,
        CLOSE | CHANNEL_CLOSE => Heard::Closed {
            code: fields.u16()?,
            text: fields.text()?,
            is_all: method == CLOSE,
        },
        CLOSE_OK => Heard::Gone,
        _ => Heard::Other,
    })
}

/// Fields at the beginning of some bytes.
#[derive(Clone, Copy, Debug)]
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*bytes)
    }

    fn u8(&mut self) -> Option<u8> {
        self.bytes().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.bytes().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.bytes().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.bytes().map(u64::from_be_bytes)
    }

    /// A short text, made readable if it is not.
    fn text(&mut self) -> Option<String> {
        let length = usize::from(self.u8()?);
        let (text, rest): (&'a [u8], _) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(String::from_utf8_lossy(text).into_owned())
    }
}

/// Appends a frame whose payload `fill` appends.
fn frame(out: &mut Vec<u8>, kind: u8, channel: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    out.push(kind);
    out.extend_from_slice(&channel.to_be_bytes());
    counted(out, fill);
    out.push(END);
}

/// Appends what `fill` appends, behind its length.
pub(super) fn counted(out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    fill(out);
    let length = out.len().saturating_sub(at + 4);
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    if let Some(place) = out.get_mut(at..at + 4) {
        place.copy_from_slice(&length.to_be_bytes());
    }
}

/// Appends a method with the arguments that `fill` appends.
pub(super) fn say(
    out: &mut Vec<u8>,
    channel: u16,
    (class, number): Method,
    fill: impl FnOnce(&mut Vec<u8>),
) {
    frame(out, METHOD, channel, |out| {
        out.extend_from_slice(&class.to_be_bytes());
        out.extend_from_slice(&number.to_be_bytes());
        fill(out);
    });
}

/// Appends a text of at most 255 bytes; everything that comes here is far below.
pub(super) fn short(out: &mut Vec<u8>, text: &[u8]) {
    let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
    out.push(length);
    out.extend(text.iter().take(usize::from(length)));
}

/// Appends a member of a table with a text as value.
pub(super) fn text_member(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    short(out, name);
    out.push(b'S');
    counted(out, |out| out.extend_from_slice(value));
}

fn true_member(out: &mut Vec<u8>, name: &[u8]) {
    short(out, name);
    out.extend_from_slice(b"t\x01");
}

/// Says who is there.
pub(super) fn start_ok(out: &mut Vec<u8>, name: &str, user: &str, password: &str) {
    say(out, 0, START_OK, |out| {
        counted(out, |out| {
            text_member(out, b"product", b"flux");
            text_member(out, b"version", env!("CARGO_PKG_VERSION").as_bytes());
            text_member(out, b"connection_name", name.as_bytes());
            short(out, b"capabilities");
            out.push(b'F');
            counted(out, |out| {
                true_member(out, b"publisher_confirms");
                true_member(out, b"connection.blocked");
                true_member(out, b"authentication_failure_close");
            });
        });
        short(out, b"PLAIN");
        counted(out, |out| {
            out.push(0);
            out.extend_from_slice(user.as_bytes());
            out.push(0);
            out.extend_from_slice(password.as_bytes());
        });
        short(out, b"en_US");
    });
}

/// Agrees to limits, and opens the virtual host.
pub(super) fn tune_ok_and_open(out: &mut Vec<u8>, limits: Limits, vhost: &str) {
    say(out, 0, TUNE_OK, |out| {
        out.extend_from_slice(&limits.channels.to_be_bytes());
        out.extend_from_slice(&limits.frame_bytes.to_be_bytes());
        out.extend_from_slice(&limits.heartbeat_seconds.to_be_bytes());
    });
    say(out, 0, OPEN, |out| {
        short(out, vhost.as_bytes());
        short(out, b"");
        out.push(0);
    });
}

/// Opens the channel.
pub(super) fn channel_open(out: &mut Vec<u8>) {
    say(out, CHANNEL, CHANNEL_OPEN, |out| short(out, b""));
}

/// Asks for confirms.
pub(super) fn confirm_select(out: &mut Vec<u8>) {
    say(out, CHANNEL, SELECT, |out| out.push(0));
}

/// Shows that this side lives.
pub(super) fn heartbeat(out: &mut Vec<u8>) {
    frame(out, HEARTBEAT, 0, |_| {});
}

/// Says farewell.
pub(super) fn close(out: &mut Vec<u8>) {
    say(out, 0, CLOSE, |out| {
        out.extend_from_slice(&200_u16.to_be_bytes());
        short(out, b"done");
        out.extend_from_slice(&[0; 4]);
    });
}

/// Takes note of a farewell.
pub(super) fn close_ok(out: &mut Vec<u8>) {
    say(out, 0, CLOSE_OK, |_| {});
}

/// A message to be published.
#[derive(Clone, Copy, Debug)]
pub(super) struct Content<'a> {
    pub(super) exchange: &'a [u8],
    pub(super) routing_key: &'a [u8],
    /// Flags and values, as the protocol has them.
    pub(super) properties: &'a [u8],
    pub(super) body: &'a [u8],
}

/// Publishes a message; it comes back if no queue is bound for it.
pub(super) fn publish(out: &mut Vec<u8>, content: Content<'_>, frame_bytes_max: u32) {
    say(out, CHANNEL, PUBLISH, |out| {
        out.extend_from_slice(&[0; 2]);
        short(out, content.exchange);
        short(out, content.routing_key);
        // Mandatory.
        out.push(1);
    });
    frame(out, HEADER, CHANNEL, |out| {
        out.extend_from_slice(&BASIC.to_be_bytes());
        out.extend_from_slice(&[0; 2]);
        let length = u64::try_from(content.body.len()).unwrap_or(u64::MAX);
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(content.properties);
    });
    let most = usize::try_from(frame_bytes_max).unwrap_or(usize::MAX);
    let most = most.saturating_sub(OVERHEAD_BYTES).max(1);
    for part in content.body.chunks(most) {
        frame(out, BODY, CHANNEL, |out| out.extend_from_slice(part));
    }
}

#[cfg(test)]
mod tests {
    use lapin::protocol::{AMQPClass, basic, channel, confirm, connection, parse_class};
    use proptest::prelude::*;

    use super::*;

    /// Kind, channel and payload of the frames in some bytes.
    fn split(mut bytes: &[u8]) -> Vec<(u8, u16, Vec<u8>)> {
        let mut frames = Vec::new();
        while let Some((head, rest)) = bytes.split_first_chunk::<HEAD_BYTES>() {
            let [kind, c0, c1, l0, l1, l2, l3] = *head;
            let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
            frames.push((kind, u16::from_be_bytes([c0, c1]), rest[..length].to_vec()));
            assert_eq!(rest[length], END);
            bytes = &rest[length + 1..];
        }
        assert!(bytes.is_empty());
        frames
    }

    /// What the client library reads in a method.
    fn class(payload: &[u8]) -> AMQPClass {
        let (rest, class) = parse_class(payload).unwrap();
        assert!(rest.is_empty());
        class
    }

    #[test]
    fn what_is_said_to_begin_is_what_the_client_library_understands() {
        let mut out = Vec::new();
        start_ok(&mut out, "flux node", "user", "s3cret");
        let limits = Limits {
            channels: 7,
            frame_bytes: 4096,
            heartbeat_seconds: 10,
        };
        tune_ok_and_open(&mut out, limits, "/prod");
        channel_open(&mut out);
        confirm_select(&mut out);
        close(&mut out);
        close_ok(&mut out);
        heartbeat(&mut out);
        let frames = split(&out);
        let channels: Vec<_> = frames.iter().map(|frame| (frame.0, frame.1)).collect();
        let expected = [
            (1, 0),
            (1, 0),
            (1, 0),
            (1, 1),
            (1, 1),
            (1, 0),
            (1, 0),
            (8, 0),
        ];
        assert_eq!(channels, expected);
        let said: Vec<_> = frames[..7].iter().map(|frame| class(&frame.2)).collect();
        let AMQPClass::Connection(connection::AMQPMethod::StartOk(start)) = &said[0] else {
            panic!("{:?}", said[0]);
        };
        assert_eq!(start.response.as_bytes(), b"\0user\0s3cret");
        assert_eq!(start.mechanism.as_str(), "PLAIN");
        assert!(start.client_properties.contains_key("capabilities"));
        let AMQPClass::Connection(connection::AMQPMethod::TuneOk(tune)) = &said[1] else {
            panic!("{:?}", said[1]);
        };
        assert_eq!(
            (tune.channel_max, tune.frame_max, tune.heartbeat),
            (7, 4096, 10)
        );
        let AMQPClass::Connection(connection::AMQPMethod::Open(open)) = &said[2] else {
            panic!("{:?}", said[2]);
        };
        assert_eq!(open.virtual_host.as_str(), "/prod");
        assert!(matches!(
            said[3],
            AMQPClass::Channel(channel::AMQPMethod::Open(_))
        ));
        assert!(matches!(
            said[4],
            AMQPClass::Confirm(confirm::AMQPMethod::Select(_))
        ));
        assert!(matches!(
            said[5],
            AMQPClass::Connection(connection::AMQPMethod::Close(_))
        ));
        assert!(matches!(
            said[6],
            AMQPClass::Connection(connection::AMQPMethod::CloseOk(_))
        ));
    }

    #[test]
    fn a_message_is_published_in_frames_no_longer_than_agreed() {
        let mut out = Vec::new();
        let content = Content {
            exchange: b"flux.cdc",
            routing_key: b"kv.0.set.user",
            properties: &[0, 0],
            body: &[b'x'; 1000],
        };
        publish(&mut out, content, 408);
        let frames = split(&out);
        let AMQPClass::Basic(basic::AMQPMethod::Publish(publish)) = class(&frames[0].2) else {
            panic!("{frames:?}");
        };
        assert_eq!(publish.exchange.as_str(), "flux.cdc");
        assert_eq!(publish.routing_key.as_str(), "kv.0.set.user");
        assert!(publish.mandatory && !publish.immediate);
        assert_eq!(frames[1].2, [0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 3, 232, 0, 0]);
        let lengths: Vec<_> = frames[2..].iter().map(|frame| frame.2.len()).collect();
        assert_eq!(lengths, [400, 400, 200]);
        let mut empty = Vec::new();
        super::publish(
            &mut empty,
            Content {
                body: b"",
                ..content
            },
            408,
        );
        assert_eq!(split(&empty).len(), 2);
    }

    fn heard(channel: u16, payload: &[u8]) -> Heard {
        let mut out = Vec::new();
        frame(&mut out, METHOD, channel, |out| {
            out.extend_from_slice(payload)
        });
        for cut in 0..out.len() {
            assert_eq!(read(&out[..cut], 4096), Ok(None), "{cut}");
        }
        let (heard, length) = read(&out, 4096).unwrap().unwrap();
        assert_eq!(length, out.len());
        heard
    }

    #[test]
    fn what_a_broker_says_is_told_apart() {
        let confirm = |tag, is_multiple, is_refused| Heard::Confirm {
            tag,
            is_multiple,
            is_refused,
        };
        let ack = [0, 60, 0, 80, 0, 0, 0, 0, 0, 0, 1, 2, 1];
        assert_eq!(heard(1, &ack), confirm(258, true, false));
        let nack = [0, 60, 0, 120, 0, 0, 0, 0, 0, 0, 0, 9, 0];
        assert_eq!(heard(1, &nack), confirm(9, false, true));
        let returned = b"\x00\x3c\x00\x32\x01\x38\x08NO_ROUTE\x01x\x04kv.0";
        let expected = Heard::Returned {
            text: "NO_ROUTE".to_owned(),
            routing_key: "kv.0".to_owned(),
        };
        assert_eq!(heard(1, returned), expected);
        let closed = b"\x00\x14\x00\x28\x01\x94\x05sorry\x00\x3c\x00\x28";
        let expected = Heard::Closed {
            code: 404,
            text: "sorry".to_owned(),
            is_all: false,
        };
        assert_eq!(heard(1, closed), expected);
        let blocked = b"\x00\x0a\x00\x3c\x03low";
        assert_eq!(heard(0, blocked), Heard::Blocked("low".to_owned()));
        assert_eq!(heard(0, &[0, 10, 0, 61]), Heard::Unblocked);
        let tune = [0, 10, 0, 30, 7, 255, 0, 2, 0, 0, 0, 60];
        let limits = Limits {
            channels: 2047,
            frame_bytes: 131_072,
            heartbeat_seconds: 60,
        };
        assert_eq!(heard(0, &tune), Heard::Tune(limits));
        assert_eq!(limits.agreed(10).heartbeat_seconds, 10);
        assert_eq!(limits.agreed(0).heartbeat_seconds, 60);
        assert_eq!(heard(0, &[0, 99, 0, 1, 5, 5]), Heard::Other);
    }

    #[test]
    fn a_frame_that_is_too_long_or_cut_or_does_not_end_is_refused() {
        let long = [1, 0, 0, 0, 1, 0, 1];
        assert_eq!(read(&long, 0x1_0000), Err(Garbled::Long));
        assert_eq!(
            read(&[1, 0, 0, 0, 0, 0, 0, 1], 100),
            Err(Garbled::Malformed)
        );
        assert_eq!(
            read(&[9, 0, 0, 0, 0, 0, 0, END], 100),
            Err(Garbled::Malformed)
        );
        let cut = [1, 0, 0, 0, 0, 0, 4, 0, 60, 0, 80, END];
        assert_eq!(read(&cut, 100), Err(Garbled::Malformed));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..64), framed: bool) {
            if framed {
                let payload = std::mem::take(&mut bytes);
                frame(&mut bytes, METHOD, 1, |out| out.extend_from_slice(&payload));
            }
            if let Ok(Some((_, length))) = read(&bytes, 1000) {
                prop_assert!(length <= bytes.len());
            }
        }
    }
}
