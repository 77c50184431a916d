//! What can go wrong with the bed itself, as opposed to what a test asserts.

use std::{io, process::ExitStatus, time::Duration};

/// What a test function returns.
pub type Outcome = Result<(), BedError>;

/// A fault of the bed, or something that was waited for and did not come.
#[derive(Debug, thiserror::Error)]
pub enum BedError {
    /// A program could not be started.
    #[error("cannot start {program}: {source}")]
    Start {
        /// The program's name.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// A program ended with another status than 0.
    #[error("`{command}` ended with {status}: {output}")]
    Failed {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it printed.
        output: String,
    },
    /// Something did not come about in time.
    #[error("{what} did not happen within {within:?}; last seen: {last}")]
    Late {
        /// What was waited for.
        what: String,
        /// For how long.
        within: Duration,
        /// What there was instead.
        last: String,
    },
    /// The operating system refused something.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A program's answer was not of the form that was expected.
    #[error("{what}: unexpected answer: {answer}")]
    Answer {
        /// What was asked.
        what: String,
        /// What came back.
        answer: String,
    },
}

impl BedError {
    /// Ties an operating system error to what was tried.
    pub fn system(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::System { what: what.into(), source: source.into() }
    }

    /// An answer that could not be understood.
    pub fn answer(what: impl Into<String>, answer: impl Into<String>) -> Self {
        Self::Answer { what: what.into(), answer: answer.into() }
    }
}
