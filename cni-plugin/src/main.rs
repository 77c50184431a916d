//! The CNI plugin that a container runtime executes.

fn main() {}
