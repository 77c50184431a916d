//! Threads that the bed and its tests wait for.

use std::{panic::resume_unwind, thread::ScopedJoinHandle};

/// What the thread returned; its panic becomes the caller's.
pub fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}
