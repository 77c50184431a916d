//! The CNI plugin that a container runtime executes.
//!
//! It checks what the runtime hands over, passes it to the node's agent in one call over a Unix socket, and prints the
//! agent's answer in the version of the configuration. All knowledge of the network is the agent's. Standard output has
//! JSON and nothing else; the exit status is 0 for success and 1 for an error.

mod agent;
mod deadline;
mod stdin;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;
use tenon_cni::{Arguments, Environment, Error, RawConf, Request, Response, Verb, Version, WireError};

use crate::deadline::Deadline;

/// How long VERSION waits for the runtime to say which version it has in mind. A runtime may leave its end open and
/// say nothing, and the answer hardly depends on it.
const VERSION_INPUT: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    if std::env::var_os("CNI_COMMAND").is_none_or(|verb| verb.is_empty()) {
        about();
        return ExitCode::SUCCESS;
    }
    let mut version = Version::NEWEST;
    let (document, status) = match run(&mut version) {
        Ok(answer) => (answer, ExitCode::SUCCESS),
        Err(error) => (Some(error.to_json(version)), ExitCode::FAILURE),
    };
    match document.map_or(Ok(()), |document| print(&document)) {
        Ok(()) => status,
        // The runtime has not read the answer, so it must not take the call for a success.
        Err(_) => ExitCode::FAILURE,
    }
}

/// What a person sees who starts the plugin by hand.
fn about() {
    let versions = Version::SUPPORTED.map(Version::as_str).join(", ");
    // Nobody is left to be told when standard error is closed.
    let _ = writeln!(
        io::stderr(),
        "CNI plugin tenon v{}; CNI versions supported: {versions}",
        env!("CARGO_PKG_VERSION")
    );
}

fn print(document: &Value) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{document}")?;
    stdout.flush()
}

/// Carries out the runtime's call. `version` becomes that of the configuration as soon as it is known.
fn run(version: &mut Version) -> Result<Option<Value>, Error> {
    let environment = Environment::of_process()?;
    let verb = Arguments::parse(&environment)?.verb;
    if verb == Verb::Version {
        return Ok(Some(version_asked().report()));
    }
    let deadline = Deadline::after(time_allowed(verb));
    let raw = RawConf::parse(&stdin::read(deadline)?)?;
    *version = raw.version().unwrap_or(Version::NEWEST);
    let request = Request::new(environment, raw)?;
    let response = agent::call(&request, deadline).map_err(|error| error.answer(verb))?;
    match (verb, response) {
        (_, Response::Failed(error)) => Err(error),
        (Verb::Add, Response::Added(success)) => Ok(Some(success.to_json(*version))),
        (Verb::Add, Response::Done) => Err(WireError::Malformed("no result of ADD".to_owned()).into()),
        (_, Response::Added(_)) => Err(WireError::Malformed(format!("a result of {verb}")).into()),
        (_, Response::Done) => Ok(None),
    }
}

/// The version in which VERSION is to be answered: from 1.0.0 on the one that the runtime writes to standard input.
fn version_asked() -> Version {
    let input = stdin::read(Deadline::after(VERSION_INPUT));
    input.and_then(|bytes| RawConf::parse(&bytes)?.version()).unwrap_or(Version::NEWEST)
}

/// How long a call may take in all. Runtimes give a pod some minutes; a health check should be told at once.
fn time_allowed(verb: Verb) -> Duration {
    Duration::from_secs(match verb {
        Verb::Add | Verb::Del | Verb::Gc => 60,
        Verb::Check => 30,
        Verb::Status | Verb::Version => 5,
    })
}
