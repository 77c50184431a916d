//! The reasons that a switch gives for refusing a request (OpenFlow 1.4.1 §7.5.4).

use std::fmt;

use super::DecodeError;
use super::wire::Reader;

/// The switch's own words on why it refused a request: an OpenFlow error message (OpenFlow 1.4.1 §7.5.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SwitchError {
    /// `OFPET_*`.
    pub error_type: u16,
    /// The code, with a meaning of its own for every type.
    pub code: u16,
    /// The experimenter that defines the code, when the type is `OFPET_EXPERIMENTER` (0xffff).
    pub experimenter: Option<u32>,
}

const OFPET_EXPERIMENTER: u16 = 0xffff;

impl SwitchError {
    /// Reads what follows the header of an `ofp_error_msg`.
    pub(crate) fn decode(mut input: Reader<'_>) -> Result<SwitchError, DecodeError> {
        let error_type = input.u16()?;
        let code = input.u16()?;
        let experimenter = if error_type == OFPET_EXPERIMENTER { Some(input.u32()?) } else { None };
        Ok(SwitchError { error_type, code, experimenter })
    }

    /// The standard's name of the type, such as `OFPET_BAD_MATCH`.
    pub const fn type_name(&self) -> Option<&'static str> {
        Some(match self.error_type {
            0 => "OFPET_HELLO_FAILED",
            1 => "OFPET_BAD_REQUEST",
            2 => "OFPET_BAD_ACTION",
            3 => "OFPET_BAD_INSTRUCTION",
            4 => "OFPET_BAD_MATCH",
            5 => "OFPET_FLOW_MOD_FAILED",
            6 => "OFPET_GROUP_MOD_FAILED",
            7 => "OFPET_PORT_MOD_FAILED",
            8 => "OFPET_TABLE_MOD_FAILED",
            9 => "OFPET_QUEUE_OP_FAILED",
            10 => "OFPET_SWITCH_CONFIG_FAILED",
            11 => "OFPET_ROLE_REQUEST_FAILED",
            12 => "OFPET_METER_MOD_FAILED",
            13 => "OFPET_TABLE_FEATURES_FAILED",
            14 => "OFPET_BAD_PROPERTY",
            15 => "OFPET_ASYNC_CONFIG_FAILED",
            16 => "OFPET_FLOW_MONITOR_FAILED",
            17 => "OFPET_BUNDLE_FAILED",
            OFPET_EXPERIMENTER => "OFPET_EXPERIMENTER",
            _ => return None,
        })
    }

    /// The standard's name of the code, such as `OFPBMC_BAD_PREREQ`, for the types that the requests of this crate
    /// can meet.
    pub fn code_name(&self) -> Option<&'static str> {
        let names: &[&str] = match self.error_type {
            0 => &["OFPHFC_INCOMPATIBLE", "OFPHFC_EPERM"],
            1 => &[
                "OFPBRC_BAD_VERSION",
                "OFPBRC_BAD_TYPE",
                "OFPBRC_BAD_MULTIPART",
                "OFPBRC_BAD_EXPERIMENTER",
                "OFPBRC_BAD_EXP_TYPE",
                "OFPBRC_EPERM",
                "OFPBRC_BAD_LEN",
                "OFPBRC_BUFFER_EMPTY",
                "OFPBRC_BUFFER_UNKNOWN",
                "OFPBRC_BAD_TABLE_ID",
                "OFPBRC_IS_SLAVE",
                "OFPBRC_BAD_PORT",
                "OFPBRC_BAD_PACKET",
                "OFPBRC_MULTIPART_BUFFER_OVERFLOW",
                "OFPBRC_MULTIPART_REQUEST_TIMEOUT",
                "OFPBRC_MULTIPART_REPLY_TIMEOUT",
            ],
            2 => &[
                "OFPBAC_BAD_TYPE",
                "OFPBAC_BAD_LEN",
                "OFPBAC_BAD_EXPERIMENTER",
                "OFPBAC_BAD_EXP_TYPE",
                "OFPBAC_BAD_OUT_PORT",
                "OFPBAC_BAD_ARGUMENT",
                "OFPBAC_EPERM",
                "OFPBAC_TOO_MANY",
                "OFPBAC_BAD_QUEUE",
                "OFPBAC_BAD_OUT_GROUP",
                "OFPBAC_MATCH_INCONSISTENT",
                "OFPBAC_UNSUPPORTED_ORDER",
                "OFPBAC_BAD_TAG",
                "OFPBAC_BAD_SET_TYPE",
                "OFPBAC_BAD_SET_LEN",
                "OFPBAC_BAD_SET_ARGUMENT",
            ],
            3 => &[
                "OFPBIC_UNKNOWN_INST",
                "OFPBIC_UNSUP_INST",
                "OFPBIC_BAD_TABLE_ID",
                "OFPBIC_UNSUP_METADATA",
                "OFPBIC_UNSUP_METADATA_MASK",
                "OFPBIC_BAD_EXPERIMENTER",
                "OFPBIC_BAD_EXP_TYPE",
                "OFPBIC_BAD_LEN",
                "OFPBIC_EPERM",
                "OFPBIC_DUP_INST",
            ],
            4 => &[
                "OFPBMC_BAD_TYPE",
                "OFPBMC_BAD_LEN",
                "OFPBMC_BAD_TAG",
                "OFPBMC_BAD_DL_ADDR_MASK",
                "OFPBMC_BAD_NW_ADDR_MASK",
                "OFPBMC_BAD_WILDCARDS",
                "OFPBMC_BAD_FIELD",
                "OFPBMC_BAD_VALUE",
                "OFPBMC_BAD_MASK",
                "OFPBMC_BAD_PREREQ",
                "OFPBMC_DUP_FIELD",
                "OFPBMC_EPERM",
            ],
            5 => &[
                "OFPFMFC_UNKNOWN",
                "OFPFMFC_TABLE_FULL",
                "OFPFMFC_BAD_TABLE_ID",
                "OFPFMFC_OVERLAP",
                "OFPFMFC_EPERM",
                "OFPFMFC_BAD_TIMEOUT",
                "OFPFMFC_BAD_COMMAND",
                "OFPFMFC_BAD_FLAGS",
                "OFPFMFC_CANT_SYNC",
                "OFPFMFC_BAD_PRIORITY",
            ],
            12 => &[
                "OFPMMFC_UNKNOWN",
                "OFPMMFC_METER_EXISTS",
                "OFPMMFC_INVALID_METER",
                "OFPMMFC_UNKNOWN_METER",
                "OFPMMFC_BAD_COMMAND",
                "OFPMMFC_BAD_FLAGS",
                "OFPMMFC_BAD_RATE",
                "OFPMMFC_BAD_BURST",
                "OFPMMFC_BAD_BAND",
                "OFPMMFC_BAD_BAND_DETAIL",
                "OFPMMFC_OUT_OF_METERS",
                "OFPMMFC_OUT_OF_BANDS",
            ],
            17 => &[
                "OFPBFC_UNKNOWN",
                "OFPBFC_EPERM",
                "OFPBFC_BAD_ID",
                "OFPBFC_BUNDLE_EXIST",
                "OFPBFC_BUNDLE_CLOSED",
                "OFPBFC_OUT_OF_BUNDLES",
                "OFPBFC_BAD_TYPE",
                "OFPBFC_BAD_FLAGS",
                "OFPBFC_MSG_BAD_LEN",
                "OFPBFC_MSG_BAD_XID",
                "OFPBFC_MSG_UNSUP",
                "OFPBFC_MSG_CONFLICT",
                "OFPBFC_MSG_TOO_MANY",
                "OFPBFC_MSG_FAILED",
                "OFPBFC_TIMEOUT",
                "OFPBFC_BUNDLE_IN_PROGRESS",
            ],
            _ => &[],
        };
        names.get(usize::from(self.code)).copied()
    }
}

impl fmt::Display for SwitchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.type_name() {
            Some(name) => f.write_str(name)?,
            None => write!(f, "type {}", self.error_type)?,
        }
        if let Some(experimenter) = self.experimenter {
            return write!(f, " {experimenter:#010x} code {}", self.code);
        }
        match self.code_name() {
            Some(name) => write!(f, " {name}"),
            None => write!(f, " code {}", self.code),
        }
    }
}
