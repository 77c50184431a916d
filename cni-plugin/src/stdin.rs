//! The configuration on standard input.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tenon_cni::Error;

use crate::deadline::Deadline;

/// The longest configuration that is taken. A pod's annotations, the largest part, may have 256 KiB in all.
const MAX_BYTES: usize = 1024 * 1024;

/// Reads standard input to its end.
///
/// # Errors
/// Code 5 when it cannot be read, code 11 when the runtime has not closed it by the deadline, code 7 beyond
/// [`MAX_BYTES`].
pub(crate) fn read(deadline: Deadline) -> Result<Vec<u8>, Error> {
    read_from(io::stdin().as_fd().try_clone_to_owned().map(File::from).map_err(|e| unreadable(&e))?, deadline)
}

fn read_from(mut input: File, deadline: Deadline) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let mut part = [0; 16 * 1024];
    loop {
        wait(&input, deadline)?;
        match input.read(&mut part) {
            Ok(0) => return Ok(bytes),
            Ok(count) => bytes.extend_from_slice(part.get(..count).unwrap_or_default()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(unreadable(&e)),
        }
        if bytes.len() > MAX_BYTES {
            return Err(Error::invalid_config(format!(
                "the network configuration is longer than {MAX_BYTES} bytes"
            )));
        }
    }
}

/// Waits until there is something to read, or the end.
fn wait(input: &File, deadline: Deadline) -> Result<(), Error> {
    loop {
        let Some(left) = deadline.remaining() else {
            return Err(Error::try_again("the runtime did not close the plugin's standard input in time"));
        };
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(input.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(e) => return Err(unreadable(&e.into())),
        }
    }
}

fn unreadable(error: &io::Error) -> Error {
    Error::io_failure("cannot read the network configuration from standard input")
        .with_details(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::OwnedFd;
    use std::thread;
    use std::time::{Duration, Instant};

    use tenon_cni::code;

    use super::*;

    fn pipe() -> (File, io::PipeWriter) {
        let (reader, writer) = io::pipe().unwrap();
        (File::from(OwnedFd::from(reader)), writer)
    }

    #[test]
    fn reads_what_comes_in_parts_to_the_end() {
        let (reader, mut writer) = pipe();
        let writing = thread::spawn(move || {
            for part in [&b"{\"name\""[..], &[b' '; 70_000], b": 1}"] {
                writer.write_all(part).unwrap();
                thread::sleep(Duration::from_millis(10));
            }
        });
        let bytes = read_from(reader, Deadline::after(Duration::from_secs(10))).unwrap();
        writing.join().unwrap();
        assert_eq!(bytes.len(), 7 + 70_000 + 4);
        assert!(bytes.ends_with(b": 1}"));
    }

    #[test]
    fn gives_up_when_the_other_end_stays_open() {
        let (reader, mut writer) = pipe();
        writer.write_all(b"{").unwrap();
        let start = Instant::now();
        let error = read_from(reader, Deadline::after(Duration::from_millis(50))).unwrap_err();
        assert_eq!(error.code, code::TRY_AGAIN);
        assert!(start.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn refuses_endless_input() {
        let endless = File::open("/dev/zero").unwrap();
        let error = read_from(endless, Deadline::after(Duration::from_secs(10))).unwrap_err();
        assert_eq!(error.code, code::INVALID_CONFIG);
    }

    #[test]
    fn a_directory_cannot_be_read() {
        let error =
            read_from(File::open("/").unwrap(), Deadline::after(Duration::from_secs(10))).unwrap_err();
        assert_eq!(error.code, code::IO_FAILURE);
    }
}
