//! Kernel settings under `net.` in the calling thread's network namespace.
//!
//! `/proc/sys/net` shows the settings of the network namespace of the thread that opens a file there, not of the
//! process or of the mount, so [`crate::NetNs::run`] is all it takes to reach those of another namespace.

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::error::{Error, Result};

/// The value of a setting, such as `net.ipv4.ip_forward`, without the line's end.
///
/// As with sysctl(8), a key whose first separator is a slash takes dots as part of a name:
/// `net/ipv4/conf/eth0.100/rp_filter`.
pub fn read(key: &str) -> Result<String> {
    let text = file(key).and_then(fs::read_to_string);
    match text {
        Ok(text) => Ok(text.trim_end().to_owned()),
        Err(source) => Err(Error::Sysctl { operation: "read", key: key.to_owned(), source }),
    }
}

/// Gives a setting a value, unless it has it already; returns whether it was changed.
pub fn write(key: &str, value: &str) -> Result<bool> {
    if read(key)?.split_whitespace().eq(value.split_whitespace()) {
        return Ok(false);
    }
    match file(key).and_then(|path| fs::write(path, value)) {
        Ok(()) => Ok(true),
        Err(source) => Err(Error::Sysctl { operation: "write", key: format!("{key}={value}"), source }),
    }
}

/// The same, of a setting that a kernel without the feature does not have: then there is nothing to set.
pub fn write_if_there(key: &str, value: &str) -> Result<()> {
    match write(key, value) {
        Err(Error::Sysctl { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        written => written.map(drop),
    }
}

fn file(key: &str) -> io::Result<PathBuf> {
    let path = match key.find(['.', '/']) {
        Some(at) if key.get(at..).is_some_and(|rest| rest.starts_with('/')) => key.to_owned(),
        // In the form with dots, a slash stands for a dot in a name.
        _ => key
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
    };
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) || path.contains('\0') {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "this is no sysctl's name"));
    }
    Ok(PathBuf::from("/proc/sys").join(path))
}
