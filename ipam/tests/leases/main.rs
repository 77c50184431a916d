//! Addresses of segments: which are given out, how they come back, and what several nodes do to each other.

#![allow(clippy::unwrap_used, clippy::panic)] // A test fails by panicking, in its helpers too.

mod choice;
mod contention;
mod interleavings;
mod reclaim;
mod store;

use std::net::IpAddr;

use serde_json::{Value, json};
use tenon_ipam::{Attachment, Choice, LeaseBook, LeaseChange, PodName, Request, Segment};

/// A segment `s` with these fields beside Master and Subnet.
fn segment(subnet: &str, more: Value) -> Segment {
    let mut record = json!({"Master": "eth0", "Subnet": subnet});
    for (field, value) in more.as_object().unwrap() {
        record[field] = value.clone();
    }
    Segment::parse("s", record.to_string().as_bytes()).unwrap()
}

fn attachment(container_id: &str) -> Attachment {
    Attachment { container_id: container_id.to_owned(), if_name: "eth0".to_owned() }
}

/// What a container without a pod's name asks for.
fn container(container_id: &str) -> Request {
    Request { attachment: attachment(container_id), pod: None, ips: Vec::new(), mac: None }
}

fn pod_name(name: &str) -> PodName {
    PodName { namespace: "a".to_owned(), name: name.to_owned() }
}

/// What a container of the pod `a/<name>` asks for.
fn pod(name: &str, container_id: &str) -> Request {
    Request { pod: Some(pod_name(name)), ..container(container_id) }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn asking(request: Request, ips: &[&str], mac: Option<&str>) -> Request {
    Request {
        ips: ips.iter().map(|text| ip(text)).collect(),
        mac: mac.map(|mac| mac.parse().unwrap()),
        ..request
    }
}

/// A book whose writes always succeed.
struct Alone {
    book: LeaseBook,
    revision: i64,
}

impl Alone {
    fn new(segment: Segment) -> Alone {
        Alone { book: LeaseBook::new(segment, "node1"), revision: 0 }
    }

    fn write(&mut self, writes: &[tenon_ipam::LeaseWrite]) {
        self.revision += 1;
        self.book.applied(writes, self.revision);
    }

    fn add(&mut self, request: &Request, now: u64) -> Result<Choice, String> {
        let choice = self.book.choose(request, now).map_err(|refusal| refusal.to_string())?;
        self.write(&choice.writes);
        Ok(choice)
    }

    /// The one address that a request gets.
    fn address(&mut self, request: &Request, now: u64) -> String {
        let choice = self.add(request, now).unwrap();
        assert_eq!(choice.leases.len(), 1);
        choice.leases[0].ip.to_string()
    }

    fn delete(&mut self, container_id: &str, now: u64) {
        let writes = self.book.release(&attachment(container_id), now);
        assert!(!writes.is_empty(), "{container_id} holds nothing");
        self.write(&writes);
    }

    /// Puts a record as a person or another node would.
    fn put(&mut self, key: &str, record: Value) {
        self.revision += 1;
        self.book.put(key, record.to_string().as_bytes(), self.revision).unwrap();
    }
}

fn kept(choice: &Choice) -> bool {
    choice.writes.iter().all(|write| write.change == LeaseChange::Keep)
}
