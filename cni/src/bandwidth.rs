//! Bandwidth limits, as the CNI conventions' `bandwidth` capability writes them.

use serde_json::{Map, Value};

use crate::error::Error;

/// The burst by which a kubelet says that none was given: the largest 32-bit number. Taken at its word it would let
/// half a gigabyte pass before the limit is felt.
const NO_BURST: u64 = u32::MAX as u64;

/// The limit of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Limit {
    /// Bits per second, more than 0.
    pub rate_bps: u64,
    /// How many bits may pass at once; `None` where nobody said.
    pub burst_bits: Option<u64>,
}

/// The limits of a pod; `None` is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Bandwidth {
    /// What goes to the pod.
    pub ingress: Option<Limit>,
    /// What comes from the pod.
    pub egress: Option<Limit>,
}

impl Bandwidth {
    /// Reads `ingressRate`, `ingressBurst`, `egressRate` and `egressBurst` in any letter case; Go programs send
    /// `IngressRate`. A rate of 0 is no limit, a burst of 0 or 4294967295 is none given. Other keys are left alone.
    /// `place` is where the object stands in the configuration, for messages.
    ///
    /// # Errors
    /// Code 7 with key and value: not an object, a number that is negative or not whole, a burst without a rate, or a
    /// key that is there in two spellings with two values.
    pub fn parse(value: &Value, place: &str) -> Result<Self, Error> {
        let fields = match value {
            Value::Null => return Ok(Self::default()),
            Value::Object(fields) => fields,
            other => return Err(Error::invalid_config(format!("{place}: {other} is not an object"))),
        };
        Ok(Self {
            ingress: limit(fields, place, "ingressRate", "ingressBurst")?,
            egress: limit(fields, place, "egressRate", "egressBurst")?,
        })
    }

    /// These limits, and where there is none, that of `default`. Rate and burst of one direction stay together.
    #[must_use]
    pub fn or(self, default: Self) -> Self {
        Self { ingress: self.ingress.or(default.ingress), egress: self.egress.or(default.egress) }
    }
}

fn limit(
    fields: &Map<String, Value>,
    place: &str,
    rate_key: &str,
    burst_key: &str,
) -> Result<Option<Limit>, Error> {
    let rate_bps = number(fields, place, rate_key)?;
    let burst_bits = number(fields, place, burst_key)?.filter(|burst| *burst != NO_BURST);
    match (rate_bps, burst_bits) {
        (Some(rate_bps), burst_bits) => Ok(Some(Limit { rate_bps, burst_bits })),
        (None, None) => Ok(None),
        (None, Some(burst)) => Err(Error::invalid_config(format!(
            "{place}.{burst_key}: {burst} is a burst without a rate; give {rate_key} too"
        ))),
    }
}

/// The number under a key in any letter case; 0 and null count as not given.
fn number(fields: &Map<String, Value>, place: &str, key: &str) -> Result<Option<u64>, Error> {
    let mut found: Option<(&str, u64)> = None;
    for (spelling, value) in fields.iter().filter(|(spelling, _)| spelling.eq_ignore_ascii_case(key)) {
        let number = match value {
            Value::Null => 0,
            other => other.as_u64().ok_or_else(|| {
                Error::invalid_config(format!("{place}.{spelling}: {value} is not a whole number from 0 on"))
            })?,
        };
        match found {
            Some((other, before)) if before != number => {
                return Err(Error::invalid_config(format!(
                    "{place}.{spelling}: {number} contradicts {place}.{other}: {before}"
                )));
            }
            _ => found = Some((spelling, number)),
        }
    }
    Ok(found.map(|(_, number)| number).filter(|number| *number != 0))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::error::code;

    fn limited(rate_bps: u64, burst_bits: Option<u64>) -> Option<Limit> {
        Some(Limit { rate_bps, burst_bits })
    }

    #[test]
    fn rates_and_bursts() {
        let table = [
            (json!(null), None, None),
            (json!({}), None, None),
            (json!({"shaper": "x", "ingressrat": 5}), None, None),
            (json!({"ingressRate": 10_000_000}), limited(10_000_000, None), None),
            (json!({"INGRESSRATE": 5, "ingressburst": 7}), limited(5, Some(7)), None),
            (json!({"egressRate": 8, "egressBurst": 0}), None, limited(8, None)),
            (
                json!({"egressRate": u64::MAX, "egressBurst": u64::MAX}),
                None,
                limited(u64::MAX, Some(u64::MAX)),
            ),
            (json!({"ingressRate": null, "egressRate": 0, "egressBurst": 4_294_967_295_u64}), None, None),
            (json!({"ingressRate": 5, "IngressRate": 5}), limited(5, None), None),
        ];
        for (value, ingress, egress) in table {
            assert_eq!(
                Bandwidth::parse(&value, "bandwidth").unwrap(),
                Bandwidth { ingress, egress },
                "{value}"
            );
        }
    }

    /// What a kubelet 1.36 with containerd 1.6 sends for the annotation `kubernetes.io/ingress-bandwidth: 10M`.
    #[test]
    fn as_a_real_kubelet_sends_it() {
        let sent = r#"{"IngressRate":10000000,"IngressBurst":4294967295,"EgressRate":0,"EgressBurst":0}"#;
        let bandwidth =
            Bandwidth::parse(&serde_json::from_str(sent).unwrap(), "runtimeConfig.bandwidth").unwrap();
        assert_eq!(bandwidth, Bandwidth { ingress: limited(10_000_000, None), egress: None });
    }

    #[test]
    fn faults_name_key_and_value() {
        let table = [
            (json!(5), "bandwidth: 5 is not an object"),
            (json!([]), "bandwidth: [] is not an object"),
            (json!({"IngressRate": -1}), "bandwidth.IngressRate: -1 is"),
            (json!({"egressRate": 1.5}), "bandwidth.egressRate: 1.5 is"),
            (json!({"egressRate": "10M"}), "bandwidth.egressRate: \"10M\" is"),
            (json!({"egressRate": true}), "bandwidth.egressRate: true is"),
            (json!({"ingressRate": 1, "ingressBurst": -3}), "bandwidth.ingressBurst: -3 is"),
            (
                json!({"ingressRate": 0, "ingressBurst": 9}),
                "bandwidth.ingressBurst: 9 is a burst without a rate",
            ),
            (
                json!({"ingressRate": 1, "IngressRate": 2}),
                "bandwidth.ingressRate: 1 contradicts bandwidth.IngressRate: 2",
            ),
        ];
        for (value, message) in table {
            let error = Bandwidth::parse(&value, "bandwidth").unwrap_err();
            assert_eq!(error.code, code::INVALID_CONFIG);
            assert!(error.msg.starts_with(message), "{value}: {}", error.msg);
        }
    }

    #[test]
    fn a_direction_keeps_rate_and_burst_together() {
        let pod = Bandwidth { ingress: limited(5, None), egress: None };
        let network = Bandwidth { ingress: limited(9, Some(4)), egress: limited(7, Some(3)) };
        assert_eq!(pod.or(network), Bandwidth { ingress: limited(5, None), egress: limited(7, Some(3)) });
    }
}
