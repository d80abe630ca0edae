//! [`matches`]: the patterns of `KEYS` and `SCAN`.
//!
//! `*` is any bytes, `?` any one, `[a-c]` and `[^a-c]` one of these or none of these, `\` takes the next as it is.

/// Whether a key is as a pattern says.
pub(super) fn matches(pattern: &[u8], key: &[u8]) -> bool {
    // Not even of `*`; but see [`selects`].
    if key.is_empty() {
        return pattern.is_empty();
    }
    // Where to go on if what follows the last `*` does not fit: one byte further. To go back to an earlier one
    // is never needed, so this takes at most the product of the lengths.
    let (mut pattern_at, mut key_at) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    loop {
        let rest = &pattern[pattern_at..];
        if rest.first() == Some(&b'*') {
            pattern_at += 1;
            retry = Some((pattern_at, key_at));
            continue;
        }
        let fits = match (rest.is_empty(), key.get(key_at)) {
            (true, None) => return true,
            (false, Some(byte)) => one(rest, *byte),
            _ => None,
        };
        match (fits, retry) {
            (Some(length), _) => {
                pattern_at += length;
                key_at += 1;
            }
            (None, Some((behind_star, from))) if from < key.len() => {
                (pattern_at, key_at) = (behind_star, from + 1);
                retry = Some((behind_star, from + 1));
            }
            (None, _) => return false,
        }
    }
}

/// As [`matches`], for commands that list keys or fields: for them a `*` by itself is no pattern at all.
pub(super) fn selects(pattern: &[u8], key: &[u8]) -> bool {
    pattern == b"*" || matches(pattern, key)
}

/// How long the part of the pattern is that a byte fits.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'[', rest @ ..] => {
            let (length, fits) = class(rest, byte);
            fits.then_some(1 + length)
        }
        [b'\\', escaped, ..] => (*escaped == byte).then_some(2),
        [plain, ..] => (*plain == byte).then_some(1),
        [] => None,
    }
}

/// Of what is behind a `[`: how long it is, and whether a byte is one of it. One that is not closed
/// ends with the pattern.
fn class(pattern: &[u8], byte: u8) -> (usize, bool) {
    let is_negated = pattern.first() == Some(&b'^');
    let mut at = usize::from(is_negated);
    let mut is_in = false;
    loop {
        match &pattern[at..] {
            [] => break,
            [b']', ..] => {
                at += 1;
                break;
            }
            [b'\\', escaped, ..] => {
                is_in |= *escaped == byte;
                at += 2;
            }
            [low, b'-', high, ..] => {
                // Bytes from 0x80 on come before all others: Redis compares `char`s, which on most machines have a sign.
                let [low, high, byte] = [*low, *high, byte].map(u8::cast_signed);
                is_in |= (low.min(high)..=low.max(high)).contains(&byte);
                at += 3;
            }
            [plain, ..] => {
                is_in |= *plain == byte;
                at += 1;
            }
        }
    }
    (at, is_in != is_negated)
}

/// What every key that matches begins with.
pub(super) fn prefix(pattern: &[u8]) -> &[u8] {
    let end = pattern.iter().position(|byte| matches!(byte, b'*' | b'?' | b'[' | b'\\'));
    &pattern[..end.unwrap_or(pattern.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_redis() {
        for (pattern, fits, does_not) in [
            ("*", &["a", "ab"][..], &[""][..]),
            ("**", &["a"], &[""]),
            ("h?llo", &["hello", "hallo"], &["hllo", "heello"]),
            ("h*llo", &["hllo", "heeello"], &["hell", "hllo!"]),
            ("h[ae]llo", &["hello", "hallo"], &["hillo"]),
            ("h[^e]llo", &["hallo", "hbllo"], &["hello"]),
            ("h[a-b]llo", &["hallo", "hbllo"], &["hcllo"]),
            ("h[b-a]llo", &["hallo", "hbllo"], &["hcllo"]),
            ("a\\*b", &["a*b"], &["axb"]),
            ("a[\\]]b", &["a]b"], &["axb"]),
            ("*a*b", &["ab", "xaxxb", "aab"], &["ba", "abx"]),
            ("a*a*a*c", &["aaac", "axaxac"], &["aaab", "aac"]),
            ("", &[""], &["a"]),
            ("a[b", &["ab"], &["a", "ac"]),
        ] {
            for key in fits {
                assert!(matches(pattern.as_bytes(), key.as_bytes()), "{pattern:?} {key:?}");
            }
            for key in does_not {
                assert!(!matches(pattern.as_bytes(), key.as_bytes()), "{pattern:?} {key:?}");
            }
        }
        assert!(selects(b"*", b"") && selects(b"*", b"a") && !selects(b"**", b""));
        for (pattern, byte, fits) in [
            (b"[\x7f-\x80]", 0, true),
            (b"[\x7f-\x80]", 0x81, true),
            (b"[\xff-\x01]", 0, true),
            (b"[\xff-\x01]", 2, false),
        ] {
            assert_eq!(matches(pattern, &[byte]), fits, "{pattern:?} {byte}");
        }
    }

    #[test]
    fn a_hostile_pattern_takes_no_longer_than_the_lengths_say() {
        let pattern = "a*".repeat(500) + "b";
        assert!(!matches(pattern.as_bytes(), "a".repeat(5_000).as_bytes()));
    }
}
