//! A JSON pull reader over borrowed text: strict RFC 8259, depth-limited, position kept.
//!
//! Hot path: no value tree is built. The protobuf reader asks for what its plan expects next and
//! strings without escapes are borrowed from the request body. The depth limit is checked on every
//! `{` and `[`, which is what makes the recursion of its callers bounded.

use std::borrow::Cow;
use std::fmt;

/// Where in the request a value was not acceptable, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FieldError {
    /// Path in the caller's own names, such as `items[2].color`; empty for the whole body.
    pub(crate) path: String,
    /// Why, as a fragment.
    pub(crate) message: String,
}

impl FieldError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            path: String::new(),
            message: message.into(),
        }
    }

    pub(crate) fn at(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            message: message.into(),
        }
    }

    /// The same error seen from the message that holds field `name`.
    #[must_use]
    pub(crate) fn within(mut self, name: &str) -> Self {
        let dot = if self.path.is_empty() || self.path.starts_with('[') {
            ""
        } else {
            "."
        };
        self.path = format!("{name}{dot}{}", self.path);
        self
    }

    /// The same error seen from the list that holds item `index`.
    #[must_use]
    pub(crate) fn within_item(mut self, index: usize) -> Self {
        let dot = if self.path.is_empty() || self.path.starts_with('[') {
            ""
        } else {
            "."
        };
        self.path = format!("[{index}]{dot}{}", self.path);
        self
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}

/// The kind of value that comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    Null,
    Bool(bool),
    Number,
    String,
    Array,
    Object,
}

impl Token {
    /// How the token is named in a message to the caller.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number => "a number",
            Self::String => "a string",
            Self::Array => "an array",
            Self::Object => "an object",
        }
    }
}

/// Reads one JSON document from its start to its end.
#[derive(Debug)]
pub(crate) struct JsonReader<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
    depth_max: usize,
}

impl<'a> JsonReader<'a> {
    pub(crate) const fn new(text: &'a str, depth_max: usize) -> Self {
        Self {
            text,
            at: 0,
            depth: 0,
            depth_max,
        }
    }

    pub(crate) const fn position(&self) -> usize {
        self.at
    }

    /// Returns to a position taken earlier at the same depth.
    pub(crate) const fn rewind(&mut self, position: usize) {
        self.at = position;
    }

    /// The text between a position taken earlier and here.
    pub(crate) fn since(&self, position: usize) -> &'a str {
        self.text.get(position..self.at).unwrap_or_default()
    }

    pub(crate) fn peek(&mut self) -> Result<Token, FieldError> {
        self.skip_whitespace();
        match self.byte() {
            Some(b'"') => Ok(Token::String),
            Some(b'{') => Ok(Token::Object),
            Some(b'[') => Ok(Token::Array),
            Some(b'n') => Ok(Token::Null),
            Some(b't') => Ok(Token::Bool(true)),
            Some(b'f') => Ok(Token::Bool(false)),
            Some(b'-' | b'0'..=b'9') => Ok(Token::Number),
            Some(_) => Err(self.syntax("expected a JSON value")),
            None => Err(self.syntax("the JSON ends too early")),
        }
    }

    /// Consumes the `null`, `true` or `false` that [`Self::peek`] announced.
    pub(crate) fn literal(&mut self, token: Token) -> Result<(), FieldError> {
        let word = match token {
            Token::Null => "null",
            Token::Bool(true) => "true",
            Token::Bool(false) => "false",
            Token::Number | Token::String | Token::Array | Token::Object => {
                return Err(self.syntax("expected null, true or false"));
            }
        };
        if self.rest().starts_with(word) {
            self.at += word.len();
            Ok(())
        } else {
            Err(self.syntax("expected a JSON value"))
        }
    }

    /// Consumes a number and returns its text, which follows the JSON grammar.
    pub(crate) fn number(&mut self) -> Result<&'a str, FieldError> {
        let start = self.at;
        while let Some(b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9') = self.byte() {
            self.at += 1;
        }
        let token = self.since(start);
        if is_json_number(token) {
            Ok(token)
        } else {
            Err(self.syntax("not a JSON number"))
        }
    }

    /// Consumes a string; borrowed unless it holds an escape.
    pub(crate) fn string(&mut self) -> Result<Cow<'a, str>, FieldError> {
        self.expect(b'"')?;
        let start = self.at;
        loop {
            match self.byte() {
                Some(b'"') => {
                    let text = self.since(start);
                    self.at += 1;
                    return Ok(Cow::Borrowed(text));
                }
                Some(b'\\') => {
                    let plain = self.since(start).to_owned();
                    return self.escaped_string(plain).map(Cow::Owned);
                }
                Some(0..=0x1f) => return Err(self.syntax("control character in a string")),
                Some(_) => self.at += 1,
                None => return Err(self.syntax("the JSON ends inside a string")),
            }
        }
    }

    fn escaped_string(&mut self, mut out: String) -> Result<String, FieldError> {
        loop {
            let start = self.at;
            while self
                .byte()
                .is_some_and(|b| b != b'"' && b != b'\\' && b >= 0x20)
            {
                self.at += 1;
            }
            out.push_str(self.since(start));
            match self.byte() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(out);
                }
                Some(b'\\') => {
                    self.at += 1;
                    out.push(self.escape()?);
                }
                Some(_) => return Err(self.syntax("control character in a string")),
                None => return Err(self.syntax("the JSON ends inside a string")),
            }
        }
    }

    fn escape(&mut self) -> Result<char, FieldError> {
        let kind = self.byte();
        self.at += 1;
        match kind {
            Some(b'"') => Ok('"'),
            Some(b'\\') => Ok('\\'),
            Some(b'/') => Ok('/'),
            Some(b'b') => Ok('\u{8}'),
            Some(b'f') => Ok('\u{c}'),
            Some(b'n') => Ok('\n'),
            Some(b'r') => Ok('\r'),
            Some(b't') => Ok('\t'),
            Some(b'u') => self.unicode_escape(),
            _ => {
                self.at -= 1;
                Err(self.syntax("unknown escape in a string"))
            }
        }
    }

    fn unicode_escape(&mut self) -> Result<char, FieldError> {
        let first = self.four_hex()?;
        let scalar = if (0xd800..0xdc00).contains(&first) {
            if !self.rest().starts_with("\\u") {
                return Err(self.syntax("lone surrogate in a string"));
            }
            self.at += 2;
            let second = self.four_hex()?;
            if !(0xdc00..0xe000).contains(&second) {
                return Err(self.syntax("lone surrogate in a string"));
            }
            0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00)
        } else {
            first
        };
        char::from_u32(scalar).ok_or_else(|| self.syntax("lone surrogate in a string"))
    }

    fn four_hex(&mut self) -> Result<u32, FieldError> {
        let digits = self.text.as_bytes().get(self.at..self.at + 4);
        let mut value = 0;
        for digit in digits.ok_or_else(|| self.syntax("the JSON ends inside an escape"))? {
            let Some(digit) = char::from(*digit).to_digit(16) else {
                return Err(self.syntax("not a hexadecimal digit in an escape"));
            };
            value = value << 4 | digit;
        }
        self.at += 4;
        Ok(value)
    }

    pub(crate) fn enter_object(&mut self) -> Result<(), FieldError> {
        self.enter(b'{')
    }

    pub(crate) fn enter_array(&mut self) -> Result<(), FieldError> {
        self.enter(b'[')
    }

    /// The next key of the object, its `:` consumed; `None` at its end. `first` starts true.
    pub(crate) fn next_key(
        &mut self,
        first: &mut bool,
    ) -> Result<Option<Cow<'a, str>>, FieldError> {
        if !self.next(first, b'}')? {
            return Ok(None);
        }
        let key = self.string()?;
        self.skip_whitespace();
        self.expect(b':')?;
        Ok(Some(key))
    }

    /// Whether the array has one more item, which is next. `first` starts true.
    pub(crate) fn next_item(&mut self, first: &mut bool) -> Result<bool, FieldError> {
        self.next(first, b']')
    }

    /// Consumes one value of any kind.
    pub(crate) fn skip_value(&mut self) -> Result<(), FieldError> {
        let mut first = true;
        match self.peek()? {
            Token::Object => {
                self.enter_object()?;
                while self.next_key(&mut first)?.is_some() {
                    self.skip_value()?;
                }
                Ok(())
            }
            Token::Array => {
                self.enter_array()?;
                while self.next_item(&mut first)? {
                    self.skip_value()?;
                }
                Ok(())
            }
            Token::String => self.string().map(drop),
            Token::Number => self.number().map(drop),
            token @ (Token::Null | Token::Bool(_)) => self.literal(token),
        }
    }

    /// Checks that nothing but white space is left.
    pub(crate) fn finish(&mut self) -> Result<(), FieldError> {
        self.skip_whitespace();
        if self.at == self.text.len() {
            Ok(())
        } else {
            Err(self.syntax("something follows the JSON value"))
        }
    }

    pub(crate) fn syntax(&self, what: &str) -> FieldError {
        FieldError::new(format!("{what} at byte {}", self.at))
    }

    fn enter(&mut self, open: u8) -> Result<(), FieldError> {
        self.skip_whitespace();
        self.expect(open)?;
        if self.depth >= self.depth_max {
            return Err(self.syntax("the JSON is nested too deeply"));
        }
        self.depth += 1;
        Ok(())
    }

    fn next(&mut self, first: &mut bool, close: u8) -> Result<bool, FieldError> {
        self.skip_whitespace();
        if self.byte() == Some(close) {
            self.at += 1;
            self.depth -= 1;
            return Ok(false);
        }
        if !*first {
            self.expect(b',')?;
            self.skip_whitespace();
        }
        *first = false;
        Ok(true)
    }

    fn expect(&mut self, byte: u8) -> Result<(), FieldError> {
        match self.byte() {
            Some(found) if found == byte => {
                self.at += 1;
                Ok(())
            }
            Some(_) => Err(self.syntax(&format!("expected '{}'", char::from(byte)))),
            None => Err(self.syntax("the JSON ends too early")),
        }
    }

    fn skip_whitespace(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.byte() {
            self.at += 1;
        }
    }

    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }
}

/// Whether the text is a number in the JSON grammar (RFC 8259 §6).
pub(crate) fn is_json_number(text: &str) -> bool {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (mantissa, exponent) = match unsigned.find(['e', 'E']) {
        Some(at) => (unsigned.get(..at), unsigned.get(at + 1..)),
        None => (Some(unsigned), None),
    };
    let (integer, fraction) = match mantissa.unwrap_or_default().split_once('.') {
        Some((integer, fraction)) => (integer, Some(fraction)),
        None => (mantissa.unwrap_or_default(), None),
    };
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    digits(integer)
        && (integer == "0" || !integer.starts_with('0'))
        && fraction.is_none_or(digits)
        && exponent.is_none_or(|part| digits(part.strip_prefix(['+', '-']).unwrap_or(part)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skips(text: &str) -> Result<(), FieldError> {
        let mut reader = JsonReader::new(text, 64);
        reader.skip_value()?;
        reader.finish()
    }

    #[test]
    fn accepts_and_refuses_what_serde_json_does() {
        let samples = [
            "{}",
            "[]",
            "[1,2]",
            "{\"a\":[{}]}",
            "\"\\u00e9\"",
            "\"\\ud83d\\ude00\"",
            "-0.5e+10",
            " true ",
            "null",
            "",
            "{",
            "[1,]",
            "{\"a\"}",
            "{a:1}",
            "01",
            "1.",
            ".5",
            "-",
            "+1",
            "nul",
            "truex",
            "\"\\ud83d\"",
            "\"\\x\"",
            "\"\u{1}\"",
            "[1 2]",
            "{\"a\":1,}",
            "1 2",
            "\"abc",
            "\"\\u12\"",
            "1e",
            "1e+",
            "--1",
            "NaN",
            "\"\\udc00\"",
            "tru",
            "[",
            "]",
        ];
        for text in samples {
            let oracle = serde_json::from_str::<serde_json::Value>(text).is_ok();
            // serde_json reads a lone surrogate only where the string is used; both refuse here.
            assert_eq!(skips(text).is_ok(), oracle, "{text}");
        }
    }

    #[test]
    fn strings_are_unescaped() {
        let mut reader = JsonReader::new(r#""a\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00z""#, 8);
        assert_eq!(reader.string().unwrap(), "a\"\\/\u{8}\u{c}\n\r\té😀z");
    }

    #[test]
    fn a_hundred_thousand_brackets_are_refused_at_the_limit() {
        let error = skips(&"[".repeat(100_000)).unwrap_err();
        assert!(error.message.contains("nested too deeply"), "{error}");
        assert!(skips(&format!("{}{}", "[".repeat(64), "]".repeat(64))).is_ok());
    }

    #[test]
    fn error_paths_read_like_the_request() {
        let error = FieldError::new("bad")
            .within("color")
            .within_item(2)
            .within("items");
        assert_eq!(error.to_string(), "items[2].color: bad");
    }
}
