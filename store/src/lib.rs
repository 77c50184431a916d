//! Tenon's state in etcd: keys, compare-and-swap, a watch that resyncs, election.
