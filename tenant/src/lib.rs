//! Tenants, their VNIs, and what an admin's edit of a record means.
