//! Links, addresses, routes and masquerading over netlink, and entry into network namespaces.
