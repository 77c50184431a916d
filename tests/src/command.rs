//! Programs: short ones that are waited for, and those that serve until they are ended.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{error::BedError, ground::Ground, netns};

/// No tool of the bed takes longer than this, unless something hangs.
const TOOL_LIMIT: Duration = Duration::from_secs(60);

/// What a program that ended left.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed on standard output.
    pub stdout: String,
    /// What it printed on standard error.
    pub stderr: String,
}

/// One run of a program.
#[derive(Debug)]
pub struct Tool {
    command: Command,
    line: String,
    netns: Option<PathBuf>,
    stdin: Option<String>,
}

impl Tool {
    /// A run of `program`, a name in PATH or a path.
    pub fn new(program: impl AsRef<Path>) -> Self {
        let program = program.as_ref();
        Self { command: Command::new(program), line: program.display().to_string(), netns: None, stdin: None }
    }

    /// Adds arguments.
    pub fn args<S: AsRef<str>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        for arg in args {
            self.line.push(' ');
            self.line.push_str(arg.as_ref());
            self.command.arg(arg.as_ref());
        }
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, key: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Starts with an empty environment.
    pub fn clear_env(mut self) -> Self {
        self.command.env_clear();
        self
    }

    /// Runs in the network namespace at `path`.
    pub fn inside(mut self, path: impl Into<PathBuf>) -> Self {
        self.netns = Some(path.into());
        self
    }

    /// Feeds standard input.
    pub fn input(mut self, text: impl Into<String>) -> Self {
        self.stdin = Some(text.into());
        self
    }

    /// Starts the program with its input written and its outputs piped, and hands it over still running.
    pub fn start(mut self) -> Result<Child, BedError> {
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        self.command.stdin(if self.stdin.is_some() { Stdio::piped() } else { Stdio::null() });
        let mut child = self.spawn()?;
        if let (Some(text), Some(mut pipe)) = (self.stdin.take(), child.stdin.take()) {
            // A program that does not read its input closes the pipe; its output tells the story.
            let _ = pipe.write_all(text.as_bytes());
        }
        Ok(child)
    }

    fn spawn(&mut self) -> Result<Child, BedError> {
        let command = &mut self.command;
        let spawned = match &self.netns {
            // The child takes its network namespace from the thread that spawns it.
            Some(path) => netns::inside(path, || command.spawn())?,
            None => command.spawn(),
        };
        spawned.map_err(|source| BedError::Start { program: self.line.clone(), source })
    }

    /// Runs to the end and gives the time from the exec to the exit. The clock starts once the namespace is
    /// entered, and nothing else of this process runs meanwhile, so that the time is the program's own.
    pub fn timed(mut self) -> Result<Duration, BedError> {
        match self.netns.take() {
            Some(path) => netns::inside(&path, || self.time())?,
            None => self.time(),
        }
    }

    fn time(self) -> Result<Duration, BedError> {
        let Self { mut command, line, stdin, .. } = self;
        let failed = |source| BedError::system(format!("run `{line}`"), source);
        let (mut printed, output) = io::pipe().map_err(failed)?;
        command.stdout(output.try_clone().map_err(failed)?).stderr(output);
        command.stdin(if stdin.is_some() { Stdio::piped() } else { Stdio::null() });
        let begin = Instant::now();
        let mut child = command.spawn().map_err(failed)?;
        if let (Some(text), Some(mut pipe)) = (stdin, child.stdin.take()) {
            let _ = pipe.write_all(text.as_bytes());
        }
        // It holds the other end of the pipe, which would never be read to its end.
        drop(command);
        let mut text = Vec::new();
        let read = printed.read_to_end(&mut text);
        let status = child.wait().map_err(failed)?;
        let taken = begin.elapsed();
        read.map_err(failed)?;
        if status.success() {
            return Ok(taken);
        }
        Err(BedError::Failed { command: line, status, output: String::from_utf8_lossy(&text).into_owned() })
    }

    /// Runs to the end, and succeeds whatever the exit status is.
    pub fn output(self) -> Result<Output, BedError> {
        let line = self.line.clone();
        let mut child = self.start()?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        thread::scope(|scope| {
            let stdout = scope.spawn(move || read_all(out));
            let stderr = scope.spawn(move || read_all(err));
            let status = wait_at_most(&mut child, TOOL_LIMIT);
            if status.is_none() {
                // Past its time: ended, so that the readers come to an end as well.
                let _ = child.kill();
                let _ = child.wait();
            }
            let stdout = stdout.join().unwrap_or_default();
            let stderr = stderr.join().unwrap_or_default();
            match status {
                Some(status) => Ok(Output { status, stdout, stderr }),
                None => Err(BedError::Late {
                    what: format!("the end of `{line}`"),
                    within: TOOL_LIMIT,
                    last: format!("{stdout}{stderr}"),
                }),
            }
        })
    }

    /// Runs to the end and returns standard output; any other exit status than 0 is an error.
    pub fn run(self) -> Result<String, BedError> {
        let command = self.line.clone();
        let output = self.output()?;
        if output.status.success() {
            Ok(output.stdout)
        } else {
            let text = format!("{}{}", output.stdout, output.stderr).trim().to_owned();
            Err(BedError::Failed { command, status: output.status, output: text })
        }
    }

    /// Starts the program as a server: no input, both outputs appended to `log`, ended with the value returned.
    pub fn serve(mut self, ground: &Arc<Ground>, log: &Path) -> Result<Process, BedError> {
        let open = || OpenOptions::new().create(true).append(true).open(log);
        let system = |e| BedError::system(format!("open {}", log.display()), e);
        let (out, err): (File, File) = (open().map_err(system)?, open().map_err(system)?);
        self.command.stdin(Stdio::null()).stdout(out).stderr(err);
        let child = self.spawn()?;
        Ok(Process { child, name: self.line, log: log.to_owned(), ground: Arc::clone(ground) })
    }
}

fn read_all(pipe: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        // What was read before an error is all there is.
        let _ = pipe.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits for a child, asking at growing intervals so that short runs are noticed at once.
fn wait_at_most(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + limit;
    let mut pause = Duration::from_micros(200);
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if Instant::now() > end {
            return None;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// A server process that ends with this value: SIGTERM, and SIGKILL three seconds later.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
    ground: Arc<Ground>,
}

impl Process {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal (`SIGSTOP`, `SIGCONT` …).
    pub fn signal(&self, signal: Signal) -> Result<(), BedError> {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, signal).map_err(|e| BedError::system(format!("send {signal} to {}", self.name), e))
    }

    /// `kill -9`, and waits for the end.
    pub fn kill(mut self) {
        self.end_now();
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(self) {}

    fn end_now(&mut self) {
        // Both fail only when the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ground.kept() {
            return;
        }
        // A stopped process would not see the SIGTERM.
        let _ = self.signal(Signal::SIGCONT);
        let _ = self.signal(Signal::SIGTERM);
        if wait_at_most(&mut self.child, Duration::from_secs(3)).is_none() {
            self.end_now();
        }
        if self.ground.troubled()
            && let Ok(text) = std::fs::read_to_string(&self.log)
        {
            let from = text.len().saturating_sub(12_000);
            let tail = text.get(from..).unwrap_or(&text);
            eprintln!("--- {} ({})\n{tail}", self.name, self.log.display());
        }
    }
}

/// Asks `seen` until it yields a value, at most for `limit`. It answers `Err(text)` for "not yet, this is what I see".
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut seen: impl FnMut() -> Result<T, String>,
) -> Result<T, BedError> {
    let end = Instant::now() + limit;
    let mut pause = Duration::from_millis(2);
    loop {
        match seen() {
            Ok(value) => return Ok(value),
            Err(last) if Instant::now() > end => {
                return Err(BedError::Late { what: what.to_owned(), within: limit, last });
            }
            Err(_) => thread::sleep(pause),
        }
        pause = (pause * 3 / 2).min(Duration::from_millis(100));
    }
}
