//! Pods: a namespace each, attached by the real plugin.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::{
    cni::{Attachment, Cni, Reply},
    error::{BedError, Outcome},
    ground::Ground,
    matrix::Place,
    netns::Netns,
};

static CONTAINERS: AtomicU32 = AtomicU32::new(0);

/// A container id that nothing else has.
pub fn container_id() -> String {
    format!("{:08x}{:056x}", CONTAINERS.fetch_add(1, Ordering::Relaxed), std::process::id())
}

/// A pod's namespace and how it was attached.
#[derive(Debug)]
pub struct Pod {
    /// How the runtime calls the plugin for it.
    pub cni: Cni,
    /// How the runtime names it.
    pub attachment: Attachment,
    netns: Netns,
    result: Option<Reply>,
}

impl Pod {
    /// Makes the namespace (the sandbox) and attaches nothing yet. `name` is unique in the cluster.
    pub fn sandbox(
        ground: &Arc<Ground>,
        cni: Cni,
        tenant: Option<&str>,
        name: &str,
    ) -> Result<Self, BedError> {
        let netns = Netns::create(ground, &format!("pod-{name}"))?;
        let attachment = Attachment {
            container: container_id(),
            netns: Some(netns.path()),
            interface: "eth0".into(),
            tenant: tenant.map(str::to_owned),
            pod: name.to_owned(),
        };
        Ok(Self { cni, attachment, netns, result: None })
    }

    /// Runs ADD and remembers the result.
    pub fn add(&mut self) -> Outcome {
        self.result = Some(self.cni.call("ADD", Some(&self.attachment))?.accepted()?);
        Ok(())
    }

    /// Runs DEL as for a pod whose namespace still exists.
    pub fn del(&self) -> Outcome {
        self.cni.call("DEL", Some(&self.attachment))?.accepted().map(|_| ())
    }

    /// Runs CHECK with the result of ADD as `prevResult`.
    pub fn check(&self) -> Result<Reply, BedError> {
        self.cni.with("prevResult", self.result()?.json.clone()).call("CHECK", Some(&self.attachment))
    }

    /// The result of ADD.
    pub fn result(&self) -> Result<&Reply, BedError> {
        self.result
            .as_ref()
            .ok_or_else(|| BedError::answer(format!("ADD of {}", self.attachment.pod), "not run"))
    }

    /// The pod's address.
    pub fn address(&self) -> Result<Ipv4Addr, BedError> {
        let result = self.result()?;
        result.address().ok_or_else(|| BedError::answer("the address in a result", result.text.clone()))
    }

    /// The gateway that the result names.
    pub fn gateway(&self) -> Result<Ipv4Addr, BedError> {
        let result = self.result()?;
        result.gateway().ok_or_else(|| BedError::answer("the gateway in a result", result.text.clone()))
    }

    /// The pod's MAC address, from the kernel.
    pub fn mac(&self) -> Result<[u8; 6], BedError> {
        let text = self.netns.ip(&["-o", "link", "show", "eth0"])?;
        let mac =
            text.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or_default();
        let bytes: Vec<u8> = mac.split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
        bytes.try_into().map_err(|_| BedError::answer("the MAC address of eth0", text))
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The pod as a place that probes go from and to.
    pub fn place(&self) -> Result<Place, BedError> {
        Ok(Place { name: self.attachment.pod.clone(), netns: self.netns.path(), address: self.address()? })
    }
}
