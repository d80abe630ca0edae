//! Numbers in text, as Redis reads and writes them.
//!
//! # Fractions
//!
//! Redis adds with the C compiler's `long double`, which is another type on another processor; replicas must not differ
//! by processor. So [`AddFloat`](super::StringAction::AddFloat) adds decimally, exactly, to 17 places behind the point, which is what
//! Redis prints. Numbers from 10^20 on are added as `f64`. Where a `long double` runs out of digits, after
//! the nineteenth, the two differ.

/// The 64-bit integer that a text is; only its one canonical form is one, as in Redis: no `+`, no space, no zero
/// in front.
pub fn parse_integer(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let is_negative = digits.len() < text.len();
    match digits.first()? {
        b'0' => return (text == b"0").then_some(0),
        b'1'..=b'9' => {}
        _ => return None,
    }
    let mut value: i64 = 0;
    for digit in digits {
        let digit = i64::from(digit.checked_sub(b'0').filter(|digit| *digit < 10)?);
        // Downwards, as the least number has no positive twin.
        value = value.checked_mul(10)?.checked_sub(digit)?;
    }
    if is_negative { Some(value) } else { value.checked_neg() }
}

/// Whether a text is a number as [`AddFloat`](super::StringAction::AddFloat) takes it.
pub fn is_number(text: &[u8]) -> bool {
    Number::parse(text).is_some()
}

/// A number with a fraction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Number {
    /// In units of 10^-17.
    Decimal(i128),
    /// From 10^20 on, or infinite.
    Binary(f64),
}

const PLACES: usize = 17;
const ONE: i128 = 10i128.pow(PLACES as u32);
/// Decimal numbers are below this.
const DECIMAL_END: i128 = ONE * 10i128.pow(20);
/// Longer texts are no numbers.
const MAX_NUMBER_LENGTH: usize = 1024;

impl Number {
    pub(super) fn parse(text: &[u8]) -> Option<Number> {
        if text.is_empty() || text.len() > MAX_NUMBER_LENGTH {
            return None;
        }
        let text = std::str::from_utf8(text).ok()?;
        // Its grammar is C's, without hexadecimal.
        let binary: f64 = text.parse().ok().filter(|number: &f64| !number.is_nan())?;
        match decimal(text.as_bytes()) {
            Some(decimal) if decimal.abs() < DECIMAL_END => Some(Number::Decimal(decimal)),
            _ => Some(Number::Binary(binary)),
        }
    }

    fn binary(self) -> f64 {
        match self {
            Number::Decimal(units) => units as f64 / ONE as f64,
            Number::Binary(number) => number,
        }
    }

    /// `None`: the sum is not finite.
    pub(super) fn plus(self, other: Number) -> Option<Number> {
        if let (Number::Decimal(one), Number::Decimal(other)) = (self, other) {
            let sum = one + other;
            if sum.abs() < DECIMAL_END {
                return Some(Number::Decimal(sum));
            }
        }
        let sum = self.binary() + other.binary();
        sum.is_finite().then_some(Number::Binary(sum))
    }

    /// With up to 17 places, and no zeros behind the last that counts.
    pub(super) fn text(self) -> String {
        let text = match self {
            Number::Decimal(units) => {
                let sign = if units < 0 { "-" } else { "" };
                let (whole, fraction) = (units.abs() / ONE, units.abs() % ONE);
                format!("{sign}{whole}.{fraction:0PLACES$}")
            }
            Number::Binary(number) => format!("{number:.PLACES$}"),
        };
        let text = text.trim_end_matches('0').trim_end_matches('.');
        if text == "-0" { "0".to_owned() } else { text.to_owned() }
    }
}

/// A decimal text in units of 10^-17, rounded; `None` if it does not fit.
fn decimal(text: &[u8]) -> Option<i128> {
    let (is_negative, text) = match text.split_first()? {
        (b'-', rest) => (true, rest),
        (b'+', rest) => (false, rest),
        _ => (false, text),
    };
    let (mantissa, exponent) = match text.iter().position(|byte| byte.eq_ignore_ascii_case(&b'e')) {
        Some(at) => (&text[..at], std::str::from_utf8(&text[at + 1..]).ok()?.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (mut units, mut behind_point, mut is_behind) = (0i128, 0i32, false);
    for byte in mantissa {
        match byte {
            b'.' => is_behind = true,
            b'0'..=b'9' => {
                units = units.checked_mul(10)?.checked_add(i128::from(byte - b'0'))?;
                behind_point += i32::from(is_behind);
            }
            _ => return None,
        }
    }
    let shift = exponent.checked_sub(behind_point)?.checked_add(PLACES as i32)?;
    let scale = 10i128.checked_pow(shift.unsigned_abs());
    units = match (shift >= 0, scale) {
        _ if units == 0 => 0,
        (true, scale) => units.checked_mul(scale?)?,
        (false, Some(scale)) => units.checked_add(scale / 2)? / scale,
        (false, None) => 0,
    };
    Some(if is_negative { -units } else { units })
}
