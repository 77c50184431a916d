//! Clusters of network namespaces on one machine, and the end-to-end tests on them.
