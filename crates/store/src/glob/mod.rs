//! Glob patterns exactly as Redis's `stringmatchlen` reads them, in time pattern × text at most.
//!
//! Redis recurses at every star. All tokens but the star match exactly one byte, so it is enough
//! to remember the last star and let it swallow one byte more whenever the rest fails: the same
//! answers, without the exponential cases.

#[cfg(test)]
mod tests;

/// Whether `text` matches `pattern`: `*`, `?`, `[a-z]`, `[^a-z]`, and `\` to escape.
///
/// The empty text matches only the empty pattern (and `*` alone, which Redis's callers treat
/// apart): so does Redis.
pub(crate) fn matches(pattern: &[u8], text: &[u8]) -> bool {
    if pattern == b"*" {
        return true;
    }
    if text.is_empty() {
        return pattern.is_empty();
    }
    let (mut rest, mut left) = (pattern, text);
    // Pattern after the last star, and the text from which it was last tried.
    let mut star: Option<(&[u8], &[u8])> = None;
    loop {
        if let Some(after) = after_stars(rest) {
            if after.is_empty() {
                return true;
            }
            star = Some((after, left));
            rest = after;
        }
        match (left.split_first(), step(rest, left)) {
            (Some((_, tail)), Some(after)) => {
                (rest, left) = (after, tail);
                if left.is_empty() && after_stars(rest).unwrap_or(rest).is_empty() {
                    return true;
                }
            }
            (None, _) | (_, None) => {
                let Some((after, from)) = star else {
                    return false;
                };
                let Some((_, tail)) = from.split_first() else {
                    return false;
                };
                if tail.is_empty() {
                    return false;
                }
                star = Some((after, tail));
                (rest, left) = (after, tail);
            }
        }
    }
}

/// The pattern after its leading stars, if it has any.
fn after_stars(pattern: &[u8]) -> Option<&[u8]> {
    let stars = pattern.iter().take_while(|byte| **byte == b'*').count();
    if stars == 0 {
        return None;
    }
    pattern.get(stars..)
}

/// Matches one token against the first byte of `text`; what is left of the pattern if it matches.
fn step<'p>(pattern: &'p [u8], text: &[u8]) -> Option<&'p [u8]> {
    let byte = *text.first()?;
    let (first, rest) = pattern.split_first()?;
    match first {
        b'?' => Some(rest),
        b'[' => class(rest, byte),
        b'\\' => match rest.split_first() {
            Some((escaped, after)) => (*escaped == byte).then_some(after),
            // A backslash at the end stands for itself.
            None => (byte == b'\\').then_some(rest),
        },
        literal => (*literal == byte).then_some(rest),
    }
}

/// Matches `byte` against the class that begins at `pattern`, after its bracket. A class without
/// end reaches to the end of the pattern.
fn class(pattern: &[u8], byte: u8) -> Option<&[u8]> {
    let (negated, mut rest) = match pattern.split_first() {
        Some((b'^', after)) => (true, after),
        _ => (false, pattern),
    };
    let mut found = false;
    loop {
        rest = match rest {
            [b'\\', escaped, after @ ..] => {
                found |= *escaped == byte;
                after
            }
            [b']', after @ ..] => {
                rest = after;
                break;
            }
            [] => break,
            [start, b'-', end, after @ ..] => {
                // Redis compares as signed characters.
                let (start, end) = (start.cast_signed(), end.cast_signed());
                let (low, high) = (start.min(end), start.max(end));
                let signed = byte.cast_signed();
                found |= low <= signed && signed <= high;
                after
            }
            [literal, after @ ..] => {
                found |= *literal == byte;
                after
            }
        };
    }
    (found != negated).then_some(rest)
}
