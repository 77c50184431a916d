//! A hash that is the same in every version of Tenon and on every node.

/// Hashes the parts with 64-bit FNV-1a (a length before each, so that their boundaries count), then mixes the bits with
/// the finaliser of MurmurHash3, as FNV alone changes little where only the last byte differs.
///
/// The standard library's hasher does not promise to stay as it is, and MAC addresses are made from this.
pub(crate) fn spread(parts: &[&[u8]]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut eat = |byte: u8| hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    for part in parts {
        (part.len() as u64).to_be_bytes().into_iter().for_each(&mut eat);
        part.iter().copied().for_each(&mut eat);
    }
    hash = (hash ^ hash >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ hash >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ hash >> 33
}
