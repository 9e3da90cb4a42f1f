//! The extended floats of INCRBYFLOAT: 64 bits of mantissa, as in the `long double` that Redis
//! computes in on x86-64, so that sums print the same digits (`10.5 + 0.1 = 10.6`, which an `f64`
//! misses).
//!
//! Everything is done with exact whole numbers and rounded once, to nearest, ties to even. Only
//! the leader runs this; replicas take the text it made.

/// Longest text that is read as a number; Redis's buffer for the same purpose.
const TEXT_BYTES_MAX: usize = 5 * 1024;
/// Powers of ten beyond this are out of range, whatever the digits before them.
const TEN_EXPONENT_MAX: i64 = 12_000;
/// Values from 2^16384 on are infinite.
const TWO_EXPONENT_MAX: i64 = 16_384;
/// Values below 2^-16446 are nothing.
const TWO_EXPONENT_MIN: i64 = -16_446;
/// Digits after the point that are printed.
const DECIMALS: usize = 17;

/// A finite number: sign, mantissa (its top bit set unless zero), and the power of two by which it
/// is multiplied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extended {
    negative: bool,
    mantissa: u64,
    exponent: i64,
}

/// A natural number: digits of 32 bits, lowest first, no zeros at the top.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Natural(Vec<u32>);

impl Natural {
    fn from_u64(number: u64) -> Self {
        let mut natural = Self(vec![low(number), low(number >> 32)]);
        natural.trim();
        natural
    }

    fn trim(&mut self) {
        while self.0.last() == Some(&0) {
            self.0.pop();
        }
    }

    fn is_zero(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of bits, up to the highest one that is set.
    fn bits(&self) -> i64 {
        let Some(top) = self.0.last() else {
            return 0;
        };
        let whole = i64::try_from(self.0.len()).unwrap_or(i64::MAX) * 32;
        whole - i64::from(top.leading_zeros())
    }

    /// `self * factor + addend`.
    fn scale(&mut self, factor: u32, addend: u32) {
        let mut carry = u64::from(addend);
        for digit in &mut self.0 {
            let sum = u64::from(*digit) * u64::from(factor) + carry;
            *digit = low(sum);
            carry = sum >> 32;
        }
        if carry != 0 {
            self.0.push(low(carry));
        }
    }

    fn scale_ten(&mut self, mut power: u64) {
        while power >= 9 {
            self.scale(1_000_000_000, 0);
            power -= 9;
        }
        for _ in 0..power {
            self.scale(10, 0);
        }
    }

    /// Divides by `divisor` and gives back the remainder.
    fn divide_small(&mut self, divisor: u32) -> u32 {
        let mut rest = 0_u64;
        for digit in self.0.iter_mut().rev() {
            let part = (rest << 32) | u64::from(*digit);
            *digit = low(part / u64::from(divisor));
            rest = part % u64::from(divisor);
        }
        self.trim();
        low(rest)
    }

    fn shift_left(&mut self, count: i64) {
        if self.is_zero() || count <= 0 {
            return;
        }
        let digits = usize::try_from(count / 32).unwrap_or(0);
        let bits = u32::try_from(count % 32).unwrap_or(0);
        if bits != 0 {
            self.scale(1 << bits, 0);
        }
        self.0.splice(0..0, std::iter::repeat_n(0, digits));
    }

    fn bit(&self, index: i64) -> bool {
        let digit = usize::try_from(index / 32).ok();
        digit
            .and_then(|digit| self.0.get(digit))
            .is_some_and(|digit| digit >> (index % 32) & 1 == 1)
    }

    /// Shifts right, rounding to nearest, ties to even.
    fn shift_right_rounded(&mut self, count: i64) {
        if count <= 0 {
            return;
        }
        let half = self.bit(count - 1);
        let below = (0..count - 1).any(|index| self.bit(index));
        let digits = usize::try_from(count / 32).unwrap_or(usize::MAX);
        let bits = u32::try_from(count % 32).unwrap_or(0);
        self.0.drain(..digits.min(self.0.len()));
        if bits != 0 {
            self.divide_small(1 << bits);
        }
        if half && (below || self.bit(0)) {
            self.add(&Self(vec![1]));
        }
        self.trim();
    }

    fn add(&mut self, other: &Self) {
        let mut carry = 0_u64;
        let len = self.0.len().max(other.0.len());
        self.0.resize(len, 0);
        for (index, digit) in self.0.iter_mut().enumerate() {
            let addend = other.0.get(index).copied().unwrap_or(0);
            let sum = u64::from(*digit) + u64::from(addend) + carry;
            *digit = low(sum);
            carry = sum >> 32;
        }
        if carry != 0 {
            self.0.push(low(carry));
        }
    }

    /// `self - other`, which must not be greater.
    fn subtract(&mut self, other: &Self) {
        let mut borrow = 0_u64;
        for (index, digit) in self.0.iter_mut().enumerate() {
            let subtrahend = u64::from(other.0.get(index).copied().unwrap_or(0)) + borrow;
            let minuend = u64::from(*digit);
            borrow = u64::from(minuend < subtrahend);
            *digit = low(minuend.wrapping_sub(subtrahend));
        }
        debug_assert_eq!(borrow, 0);
        self.trim();
    }

    fn not_less(&self, other: &Self) -> bool {
        match self.0.len().cmp(&other.0.len()) {
            std::cmp::Ordering::Less => false,
            std::cmp::Ordering::Greater => true,
            std::cmp::Ordering::Equal => self.0.iter().rev().ge(other.0.iter().rev()),
        }
    }

    /// The number as text, in decimal.
    fn into_digits(mut self) -> Vec<u8> {
        let mut reversed = Vec::new();
        while !self.is_zero() {
            let mut part = self.divide_small(1_000_000_000);
            for _ in 0..9 {
                reversed.push(b'0' + u8::try_from(part % 10).unwrap_or(0));
                part /= 10;
            }
        }
        while reversed.last() == Some(&b'0') {
            reversed.pop();
        }
        reversed.reverse();
        reversed
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the low half is what is wanted"
)]
const fn low(number: u64) -> u32 {
    number as u32
}

/// Sign, decimal digits as a number, and power of ten.
struct Decimal {
    negative: bool,
    digits: Natural,
    exponent: i64,
}

impl Extended {
    /// Reads a decimal number: sign, digits with a point, exponent; nothing before or after.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        if text.is_empty() || text.len() >= TEXT_BYTES_MAX {
            return None;
        }
        let decimal = parse_decimal(text)?;
        if decimal.digits.is_zero() {
            return Some(Self::zero(decimal.negative));
        }
        if decimal.exponent.abs() > TEN_EXPONENT_MAX {
            return None;
        }
        let power = decimal.exponent.unsigned_abs();
        let mut numerator = decimal.digits;
        let rounded = if decimal.exponent >= 0 {
            numerator.scale_ten(power);
            Self::rounded(decimal.negative, numerator, 0)
        } else {
            let mut denominator = Natural::from_u64(1);
            denominator.scale_ten(power);
            Self::ratio(decimal.negative, numerator, denominator)
        };
        // As for Redis, what rounds to infinity or to nothing is not a number.
        rounded.filter(|number| number.exponent + 64 >= TWO_EXPONENT_MIN)
    }

    const fn zero(negative: bool) -> Self {
        Self {
            negative,
            mantissa: 0,
            exponent: 0,
        }
    }

    /// `natural * 2^exponent`, rounded to 64 bits; `None` if infinite.
    fn rounded(negative: bool, mut natural: Natural, exponent: i64) -> Option<Self> {
        if natural.is_zero() {
            return Some(Self::zero(false));
        }
        let excess = natural.bits() - 64;
        natural.shift_right_rounded(excess);
        natural.shift_left(-excess);
        // Rounding up may have made a 65th bit.
        let carried = natural.bits() - 64;
        natural.shift_right_rounded(carried);
        let exponent = exponent + excess + carried;
        let mantissa = natural
            .0
            .iter()
            .rev()
            .fold(0, |sum: u64, digit| (sum << 32) | u64::from(*digit));
        let is_finite = exponent + 64 <= TWO_EXPONENT_MAX;
        is_finite.then_some(Self {
            negative,
            mantissa,
            exponent,
        })
    }

    /// `numerator / denominator`, rounded to 64 bits.
    fn ratio(negative: bool, mut numerator: Natural, mut denominator: Natural) -> Option<Self> {
        let shift = numerator.bits() - denominator.bits();
        denominator.shift_left(shift);
        numerator.shift_left(-shift);
        let mut exponent = shift;
        if !numerator.not_less(&denominator) {
            numerator.shift_left(1);
            exponent -= 1;
        }
        // Two bits beyond the mantissa, and one that says whether anything follows.
        let mut quotient = 0_u128;
        for _ in 0..66 {
            quotient <<= 1;
            if numerator.not_less(&denominator) {
                numerator.subtract(&denominator);
                quotient |= 1;
            }
            numerator.shift_left(1);
        }
        quotient = (quotient << 1) | u128::from(!numerator.is_zero());
        let parts = [quotient, quotient >> 32, quotient >> 64];
        #[expect(clippy::cast_possible_truncation, reason = "cut into digits")]
        let mut natural = Natural(parts.iter().map(|part| *part as u32).collect());
        natural.trim();
        Self::rounded(negative, natural, exponent - 66)
    }

    /// The sum, or `None` if it is infinite.
    pub(crate) fn add(self, other: Self) -> Option<Self> {
        if self.mantissa == 0 {
            return Some(other);
        }
        if other.mantissa == 0 {
            return Some(self);
        }
        let exponent = self.exponent.min(other.exponent);
        let align = |number: Self| {
            let mut natural = Natural::from_u64(number.mantissa);
            natural.shift_left(number.exponent - exponent);
            natural
        };
        let (mut a, mut b) = (align(self), align(other));
        if self.negative == other.negative {
            a.add(&b);
            return Self::rounded(self.negative, a, exponent);
        }
        if a.not_less(&b) {
            a.subtract(&b);
            Self::rounded(self.negative, a, exponent)
        } else {
            b.subtract(&a);
            Self::rounded(other.negative, b, exponent)
        }
    }

    /// As `%.17Lf` prints it, without the zeros at the end.
    pub(crate) fn to_text(self) -> Vec<u8> {
        let mut scaled = Natural::from_u64(self.mantissa);
        scaled.scale_ten(DECIMALS as u64);
        scaled.shift_left(self.exponent);
        scaled.shift_right_rounded(-self.exponent);
        let digits = scaled.into_digits();
        let mut text = Vec::with_capacity(digits.len() + DECIMALS + 3);
        if self.negative {
            text.push(b'-');
        }
        let (whole, decimals) = digits.split_at(digits.len().saturating_sub(DECIMALS));
        if whole.is_empty() {
            text.push(b'0');
        }
        text.extend_from_slice(whole);
        text.push(b'.');
        text.extend(std::iter::repeat_n(b'0', DECIMALS - decimals.len()));
        text.extend_from_slice(decimals);
        while text.last() == Some(&b'0') {
            text.pop();
        }
        if text.last() == Some(&b'.') {
            text.pop();
        }
        if text == b"-0" {
            text.remove(0);
        }
        text
    }
}

fn parse_decimal(text: &[u8]) -> Option<Decimal> {
    let (negative, mut rest) = match text.split_first()? {
        (b'-', rest) => (true, rest),
        (b'+', rest) => (false, rest),
        _ => (false, text),
    };
    let mut digits = Natural(Vec::new());
    let (mut exponent, mut any, mut after_point) = (0_i64, false, false);
    while let Some((byte, tail)) = rest.split_first() {
        match byte {
            b'0'..=b'9' => {
                digits.scale(10, u32::from(byte - b'0'));
                any = true;
                exponent -= i64::from(after_point);
            }
            b'.' if !after_point => after_point = true,
            _ => break,
        }
        rest = tail;
    }
    if !any {
        return None;
    }
    if let Some((b'e' | b'E', tail)) = rest.split_first() {
        exponent = exponent.saturating_add(parse_exponent(tail)?);
        rest = &[];
    }
    rest.is_empty().then_some(Decimal {
        negative,
        digits,
        exponent,
    })
}

fn parse_exponent(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text.split_first()? {
        (b'-', digits) => (true, digits),
        (b'+', digits) => (false, digits),
        _ => (false, text),
    };
    if digits.is_empty() {
        return None;
    }
    let mut sum = 0_i64;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        sum = sum
            .saturating_mul(10)
            .saturating_add(i64::from(digit - b'0'));
    }
    Some(if negative { -sum } else { sum })
}
