//! A watch over where HTTP/1.1 messages begin and end, to refuse those that two readers could cut
//! differently.
//!
//! hyper follows RFC 9112 in preferring `Transfer-Encoding` over `Content-Length` when a request
//! has both, and does not tell. A proxy in front that prefers the other would take the rest of the
//! body for the next request, of somebody else. The same goes for a line feed that no carriage
//! return precedes, which some take for the end of a line. The only safe answer is 400, so this
//! watch looks at the bytes on their way to hyper and spoils such an end, which hyper then refuses.
//!
//! Hot path, but cheap: it looks for line ends in heads and skips bodies by their length.

/// Longest part of a line that is kept when a line arrives in pieces: enough for the two headers.
const PARTIAL_MAX: usize = 256;

/// What hyper reads instead of everything after a line that was spoilt. Two of them end a head for
/// it, so that it looks at what came before at once.
const FILLER: u8 = b'\n';
/// More of them than hyper takes of anything; then comes the end.
const FILLER_MAX: usize = 64 << 10;

/// Follows one connection's requests.
#[derive(Debug)]
pub(crate) struct Framing {
    state: State,
    /// The beginning of a line whose end has not arrived.
    partial: Vec<u8>,
    /// The last byte that arrived of it.
    last: u8,
    head: Head,
    /// Bytes that were given out instead of the peer's.
    filled: usize,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Head,
    /// Bytes of a body, or of a chunk, to skip.
    Body(u64),
    Chunk(u64),
    ChunkSize,
    ChunkEnd,
    Trailers,
    /// The peer broke the protocol: hyper will close the connection. Nothing of it is passed on.
    Lost,
}

#[derive(Clone, Copy, Debug, Default)]
struct Head {
    has_request_line: bool,
    is_chunked: bool,
    has_length: bool,
    length: u64,
}

impl Framing {
    pub(crate) const fn new() -> Self {
        Self {
            state: State::Head,
            partial: Vec::new(),
            last: 0,
            head: Head::new(),
            filled: 0,
        }
    }

    /// What is to be read instead of what the peer still sends, if it broke the protocol.
    pub(crate) fn instead(&mut self, room: usize) -> Option<&'static [u8]> {
        static FILLERS: [u8; 1_024] = [FILLER; 1_024];
        if !matches!(self.state, State::Lost) {
            return None;
        }
        let count = room.min(FILLER_MAX.saturating_sub(self.filled));
        let fillers = FILLERS.get(..count).unwrap_or(&FILLERS);
        self.filled += fillers.len();
        Some(fillers)
    }

    /// Looks at bytes that arrived, and spoils the end of an ambiguous head among them.
    pub(crate) fn watch(&mut self, bytes: &mut [u8]) {
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            match self.state {
                // Whatever hyper would make of the rest, it must not be a request.
                State::Lost => {
                    bytes.get_mut(at..).unwrap_or_default().fill(FILLER);
                    return;
                }
                State::Body(left) | State::Chunk(left) => {
                    let skipped = rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    at += skipped;
                    self.skipped(left - skipped as u64);
                }
                State::Head | State::ChunkSize | State::ChunkEnd | State::Trailers => {
                    let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
                        let room = PARTIAL_MAX.saturating_sub(self.partial.len());
                        self.partial.extend(rest.iter().take(room));
                        self.last = rest.last().copied().unwrap_or(self.last);
                        return;
                    };
                    let line = rest.get(..end).unwrap_or_default();
                    let before = line.last().copied().unwrap_or(self.last);
                    self.last = 0;
                    let state = self.state;
                    let is_ambiguous = self.whole_line(line) || before != b'\r';
                    at += end;
                    if let (true, Some(byte)) = (is_ambiguous, bytes.get_mut(at)) {
                        *byte = spoilt(state);
                        self.state = State::Lost;
                    }
                    at += 1;
                }
            }
        }
    }

    fn skipped(&mut self, left: u64) {
        self.state = match (self.state, left) {
            (State::Chunk(_), 0) => State::ChunkEnd,
            (State::Chunk(_), left) => State::Chunk(left),
            (_, 0) => self.next_head(),
            (_, left) => State::Body(left),
        };
    }

    const fn next_head(&mut self) -> State {
        self.head = Head::new();
        State::Head
    }

    /// Takes a line without its line feed; whether it ends an ambiguous head.
    fn whole_line(&mut self, tail: &[u8]) -> bool {
        if self.partial.is_empty() {
            return self.line(tail);
        }
        let mut whole = std::mem::take(&mut self.partial);
        let room = PARTIAL_MAX.saturating_sub(whole.len());
        // A line cut off here is longer than any that matters.
        whole.extend(tail.iter().take(room));
        self.line(&whole)
    }

    fn line(&mut self, line: &[u8]) -> bool {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match self.state {
            State::Head => return self.head_line(line),
            State::ChunkSize => {
                let size = line.split(|byte| *byte == b';').next().unwrap_or_default();
                let size = std::str::from_utf8(size.trim_ascii()).ok();
                self.state = match size.and_then(|hex| u64::from_str_radix(hex, 16).ok()) {
                    Some(0) => State::Trailers,
                    Some(size) => State::Chunk(size),
                    None => State::Lost,
                };
            }
            State::ChunkEnd if line.is_empty() => self.state = State::ChunkSize,
            State::ChunkEnd => self.state = State::Lost,
            State::Trailers if line.is_empty() => self.state = self.next_head(),
            State::Trailers | State::Body(_) | State::Chunk(_) | State::Lost => {}
        }
        false
    }

    fn head_line(&mut self, line: &[u8]) -> bool {
        if !self.head.has_request_line {
            // Empty lines before a request are allowed.
            self.head.has_request_line = !line.is_empty();
            return false;
        }
        if line.is_empty() {
            let head = self.head;
            self.state = match (head.is_chunked, head.length) {
                (true, _) => State::ChunkSize,
                (false, 0) => self.next_head(),
                (false, length) => State::Body(length),
            };
            return head.is_chunked && head.has_length;
        }
        let mut halves = line.splitn(2, |byte| *byte == b':');
        let name = halves.next().unwrap_or_default().trim_ascii();
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.head.is_chunked = true;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            let value = halves.next().unwrap_or_default().trim_ascii();
            let length = std::str::from_utf8(value)
                .ok()
                .and_then(|text| text.parse().ok());
            self.head.has_length = true;
            // What is not a number is refused by hyper.
            self.head.length = length.unwrap_or(0);
        }
        false
    }
}

/// What hyper refuses in place of a line feed.
const fn spoilt(state: State) -> u8 {
    match state {
        // It wants a line feed after this, and will not get one.
        State::Trailers => b'\r',
        // It takes none without a carriage return by itself, and would take a NUL in an extension.
        State::ChunkSize | State::ChunkEnd => b'\n',
        State::Head | State::Body(_) | State::Chunk(_) | State::Lost => 0,
    }
}

impl Head {
    const fn new() -> Self {
        Self {
            has_request_line: false,
            is_chunked: false,
            has_length: false,
            length: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether anything is spoilt, given in two pieces cut at every place.
    fn is_spoilt(text: &str) -> bool {
        let results: Vec<bool> = (0..=text.len())
            .map(|cut| {
                let mut framing = Framing::new();
                let mut bytes = text.as_bytes().to_vec();
                let (first, second) = bytes.split_at_mut(cut);
                framing.watch(first);
                framing.watch(second);
                bytes != text.as_bytes()
            })
            .collect();
        assert!(
            results.iter().all(|one| *one == results[0]),
            "differs by cut: {text:?}"
        );
        results[0]
    }

    #[test]
    fn only_a_head_with_both_headers_is_spoilt_wherever_it_is() {
        let plain = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        let body = "POST / HTTP/1.1\r\ncontent-length: 44\r\n\r\n\
            content-length: 1\r\ntransfer-encoding: x\r\n\r\n\n";
        let chunked = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\
            5;x=y\r\nhello\r\n14\r\nContent-Length: 123\n\r\n0\r\nx: y\r\n\r\n";
        let both =
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nx: y\r\nContent-Length: 5\r\n\r\n";
        for good in [plain, body, chunked] {
            assert!(!is_spoilt(good), "{good:?}");
            assert!(
                !is_spoilt(&format!("{good}{plain}\r\n{chunked}")),
                "{good:?}"
            );
            assert!(is_spoilt(&format!("{good}{both}")), "{good:?}");
        }
        assert!(is_spoilt(both));
    }

    #[test]
    fn after_a_spoilt_line_there_is_nothing_of_the_peers_and_an_end() {
        let mut framing = Framing::new();
        assert_eq!(framing.instead(10), None);
        let mut bytes = *b"GET / HTTP/1.1\nGET /";
        framing.watch(&mut bytes);
        assert_eq!(&bytes, b"GET / HTTP/1.1\0\n\n\n\n\n");
        assert_eq!(framing.instead(3), Some(&b"\n\n\n"[..]));
        let total: usize = std::iter::from_fn(|| framing.instead(5_000))
            .map(<[u8]>::len)
            .take_while(|count| *count > 0)
            .sum();
        assert_eq!(total + 3, FILLER_MAX);
    }

    #[test]
    fn a_line_feed_alone_ends_no_line_wherever_it_is() {
        for bad in [
            "\n",
            "GET / HTTP/1.1\nhost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\n\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\na: b\n\r\n",
        ] {
            assert!(is_spoilt(bad), "{bad:?}");
        }
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(2 * PARTIAL_MAX));
        assert!(!is_spoilt(&long));
        assert!(is_spoilt(&long.replace("1.1\r", "1.1")));
    }
}
