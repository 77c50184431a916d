//! Kubernetes quantities, as people write them into annotations: `10M`, `1Gi`, `500k`, `1e6`, `1.5G`.

use thiserror::Error;

/// Why a text is no bandwidth.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum QuantityError {
    /// Not a quantity at all.
    #[error("{0:?} is not a quantity such as 10M, 1Gi, 500k, 1e6 or 1000000")]
    Malformed(String),
    /// Below zero.
    #[error("{0:?} is negative")]
    Negative(String),
    /// More than 64 bits hold.
    #[error("{0:?} is too large")]
    TooLarge(String),
}

/// The whole number that a quantity stands for; a fraction is rounded up, as the kubelet does.
///
/// The suffixes are those of the Kubernetes API's `resource.Quantity`: `k M G T P E` are powers of 1000, `Ki Mi Gi Ti Pi Ei`
/// powers of 1024, `n u m` thousandths, and `e6` or `E6` an exponent of ten.
pub fn parse_quantity(text: &str) -> Result<u64, QuantityError> {
    let malformed = || QuantityError::Malformed(text.chars().take(64).collect());
    let (negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
        return Err(malformed());
    }
    let (binary_power, decimal_power) = scale(suffix).ok_or_else(malformed)?;
    let digits = format!("{whole}{fraction}");
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return Ok(0);
    }
    let too_large = || QuantityError::TooLarge(text.chars().take(64).collect());
    if negative {
        return Err(QuantityError::Negative(text.chars().take(64).collect()));
    }
    // What a u128 does not hold is far beyond any bandwidth.
    let mut value: u128 = digits.parse().map_err(|_| too_large())?;
    value = value.checked_mul(1_u128 << binary_power).ok_or_else(too_large)?;
    let power = decimal_power.saturating_sub(i32::try_from(fraction.len()).map_err(|_| malformed())?);
    let factor = 10_u128.checked_pow(power.unsigned_abs());
    value = match factor {
        Some(factor) if power < 0 => value.div_ceil(factor),
        Some(factor) => value.checked_mul(factor).ok_or_else(too_large)?,
        None if power < 0 => 1,
        None => return Err(too_large()),
    };
    u64::try_from(value).map_err(|_| too_large())
}

/// A suffix as a power of two and a power of ten.
fn scale(suffix: &str) -> Option<(u32, i32)> {
    Some(match suffix {
        "" => (0, 0),
        "n" => (0, -9),
        "u" => (0, -6),
        "m" => (0, -3),
        "k" => (0, 3),
        "M" => (0, 6),
        "G" => (0, 9),
        "T" => (0, 12),
        "P" => (0, 15),
        "E" => (0, 18),
        "Ki" => (10, 0),
        "Mi" => (20, 0),
        "Gi" => (30, 0),
        "Ti" => (40, 0),
        "Pi" => (50, 0),
        "Ei" => (60, 0),
        other => {
            let exponent = other.strip_prefix(['e', 'E'])?;
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            (0, exponent.parse::<i32>().ok()?)
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantities_are_what_kubernetes_takes_them_for() {
        for (text, value) in [
            ("0", 0),
            ("1000000", 1_000_000),
            ("10M", 10_000_000),
            ("10Mi", 10 << 20),
            ("1Gi", 1 << 30),
            ("500k", 500_000),
            ("500Ki", 512_000),
            ("1e6", 1_000_000),
            ("1E6", 1_000_000),
            ("1E", 1_000_000_000_000_000_000),
            ("1e+3", 1_000),
            ("1500e-3", 2),
            ("1.5M", 1_500_000),
            (".5M", 500_000),
            ("1.5Gi", 3 << 29),
            ("2.M", 2_000_000),
            ("+3k", 3_000),
            ("1500m", 2),
            ("1n", 1),
            ("1e-99", 1),
            ("-0", 0),
            ("0.000", 0),
            ("0000000000000000000000000000000000000000001k", 1_000),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_quantity(text), Ok(value), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_named() {
        for text in [
            "", "M", "10 M", "10mb", "10MB", "10K", "ten", "1.2.3", "1e", "1e1.5", "0x10", "10m5", "--1",
            "1_000", "１",
        ] {
            assert_eq!(parse_quantity(text), Err(QuantityError::Malformed(text.to_owned())), "{text}");
        }
        assert_eq!(parse_quantity("-1M"), Err(QuantityError::Negative("-1M".to_owned())));
        for text in ["18446744073709551616", "1e99999", "16Ei", "99999E", "1e999999999999"] {
            assert!(parse_quantity(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,40}") {
            let _ = parse_quantity(&text);
        }

        #[test]
        fn plain_numbers_are_themselves(number: u64) {
            prop_assert_eq!(parse_quantity(&number.to_string()), Ok(number));
        }
    }
}
