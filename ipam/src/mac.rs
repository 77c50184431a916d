//! MAC addresses made from pod addresses.

use std::net::Ipv4Addr;

/// The MAC address of the interface that has this address: `0e:74`, then the four bytes of the address.
///
/// It is locally administered and unicast (IEEE 802: bit 1 of the first byte set, bit 0 clear), unique where the
/// address is, and the same on every node, so that a node can answer ARP for a pod that it has never seen.
pub const fn mac_of(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x0e, 0x74, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_locally_administered_unicast_and_holds_the_address() {
        let mac = mac_of(Ipv4Addr::new(172, 11, 0, 255));
        assert_eq!(mac, [0x0e, 0x74, 172, 11, 0, 255]);
        assert_eq!(mac[0] & 0b11, 0b10);
    }
}
