//! The node agent: owns the node's pod network.

fn main() {}
