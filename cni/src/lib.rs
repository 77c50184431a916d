//! Container Network Interface types and the call between plugin and agent.
