//! A steady stream of echo requests that counts what was lost.

use std::{
    collections::HashSet,
    net::Ipv4Addr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    datapath::patience,
    error::BedError,
    probe::{echo_reply, echo_request, icmp_socket},
};

/// What became of the packets of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Echo requests sent.
    pub sent: u16,
    /// Of these, how many were never answered.
    pub lost: u16,
    /// The longest time between two answers.
    pub longest_gap: Duration,
}

/// A stream that runs until it is stopped.
#[derive(Debug)]
pub struct Stream {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Tally>,
}

impl Stream {
    /// Sends one echo request every `interval` from the namespace `from`.
    pub fn start(from: &Path, to: Ipv4Addr, interval: Duration) -> Result<Self, BedError> {
        let socket = icmp_socket(from)?;
        socket
            .set_read_timeout(Some(Duration::from_millis(1)))
            .map_err(|e| BedError::system("set a read timeout", e))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            // Above those that `reach` uses, and different for every destination.
            let identifier = 0x8000 | u16::from(to.octets()[3]) | (u16::from(to.octets()[2] & 0x0f) << 8);
            let (mut sent, mut answered) = (0_u16, HashSet::new());
            let mut due = Instant::now();
            let mut last_answer = Instant::now();
            let mut longest_gap = Duration::ZERO;
            let mut packet = [0; 2048];
            let mut end = None;
            while end.is_none_or(|end| Instant::now() < end && answered.len() < usize::from(sent)) {
                if end.is_none() && (stopped.load(Ordering::Relaxed) || sent == u16::MAX) {
                    end = Some(Instant::now() + patience(Duration::from_secs(1)));
                }
                if end.is_none() && Instant::now() >= due {
                    // A packet that could not even be sent counts as lost.
                    let _ = socket.send_to(&echo_request(identifier, sent), (to, 0));
                    sent += 1;
                    due += interval;
                }
                let Ok((length, _)) = socket.recv_from(&mut packet) else { continue };
                if let Some((id, sequence)) = packet.get(..length).and_then(echo_reply)
                    && id == identifier
                    && answered.insert(sequence)
                {
                    longest_gap = longest_gap.max(last_answer.elapsed());
                    last_answer = Instant::now();
                }
            }
            let lost = sent - u16::try_from(answered.len()).unwrap_or(u16::MAX).min(sent);
            Tally { sent, lost, longest_gap }
        });
        Ok(Self { stop, thread })
    }

    /// Ends the stream, waits for answers under way, and counts.
    pub fn stop(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}
