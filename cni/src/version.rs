//! Versions of the CNI specification that Tenon speaks.

use std::fmt;

use serde_json::{Value, json};

use crate::error::Error;

/// A version of the CNI specification, in order of age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// 0.3.1: interfaces and several addresses in the result.
    V0_3_1,
    /// 0.4.0: CHECK, and `prevResult` on DEL.
    V0_4_0,
    /// 1.0.0: addresses no longer name their IP version.
    V1_0_0,
    /// 1.1.0: GC, STATUS, and MTU in the result.
    V1_1_0,
}

impl Version {
    /// Every version that Tenon speaks, oldest first.
    pub const SUPPORTED: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// The newest version that Tenon speaks; used in answers that belong to no configuration.
    pub const NEWEST: Self = Self::V1_1_0;

    /// The version as configurations write it, such as `1.1.0`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Reads a version as a configuration's `cniVersion` has it.
    ///
    /// # Errors
    /// [`code::INCOMPATIBLE_VERSION`](crate::code::INCOMPATIBLE_VERSION) for every version that is not in
    /// [`SUPPORTED`](Self::SUPPORTED). A configuration without a `cniVersion` is one of version 0.1.0.
    pub fn parse(text: &str) -> Result<Self, Error> {
        Self::SUPPORTED
            .into_iter()
            .find(|version| version.as_str() == text)
            .ok_or_else(|| Error::incompatible_version(text))
    }

    /// The answer to the verb VERSION: `self` as the version in use, and the versions that Tenon speaks.
    pub fn report(self) -> Value {
        json!({
            "cniVersion": self.as_str(),
            "supportedVersions": Self::SUPPORTED.map(Self::as_str),
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::code;

    #[test]
    fn supported_versions_parse_and_are_in_order() {
        for pair in Version::SUPPORTED.windows(2) {
            assert!(pair[0] < pair[1]);
        }
        for version in Version::SUPPORTED {
            assert_eq!(Version::parse(version.as_str()).unwrap(), version);
        }
        assert_eq!(Version::SUPPORTED.last(), Some(&Version::NEWEST));
    }

    #[test]
    fn other_versions_are_incompatible() {
        for text in ["", "0.1.0", "0.2.0", "0.3.0", "1.2.0", "2.0.0", "1.1", "1.1.0 ", "v1.1.0", "x"] {
            let error = Version::parse(text).unwrap_err();
            assert_eq!(error.code, code::INCOMPATIBLE_VERSION, "{text:?}");
            assert!(error.details.contains("0.3.1, 0.4.0, 1.0.0, 1.1.0"), "{}", error.details);
        }
    }

    #[test]
    fn report_lists_all_versions() {
        assert_eq!(
            Version::V0_4_0.report(),
            json!({"cniVersion": "0.4.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]})
        );
    }
}
