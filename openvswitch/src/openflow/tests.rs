//! The encoding by itself: bytes worked out by hand from the specification, random flows there and back, and bytes
//! that are no flows.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use proptest::prelude::{any, prop_assert_eq, proptest};

use super as of;
use super::message::{self, Header};
use super::wire::{Reader, Writer};
use super::{
    Action, DecodeError, Field, FieldError, FieldKind, Flow, FlowMod, FlowStats, Mac, Match, PortNo,
    Subfield, SwitchError,
};

#[path = "../../tests/openflow/arbitrary.rs"]
mod arbitrary;

fn written(encode: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut out = Writer::default();
    encode(&mut out);
    out.into_bytes()
}

#[test]
fn a_flow_mod_in_a_bundle_byte_for_byte() {
    const TENANT: Subfield = Subfield::register::<1, 8, 24>();
    let net: ipnet::Ipv4Net = "10.1.0.0/16".parse().unwrap();
    let flow = Flow::new(3, 0x0102, Match::new().in_port(7).ipv4_src(net))
        .cookie(0xc0)
        .actions([
            TENANT.load(0xabcdef).unwrap(),
            Action::SetField(Field::eth_dst(Mac([2, 0, 0, 0, 0, 9]))),
            Action::Output(PortNo::LOCAL),
        ])
        .goto(4);
    let bytes = written(|out| message::bundle_add(out, 0x11, 0x22, &FlowMod::Add(flow)).unwrap());
    #[rustfmt::skip]
    let wanted = [
        5, 34, 0, 168, 0, 0, 0, 0x11, // bundle add message
        0, 0, 0, 0x22, 0, 0, 0, 3, // bundle, atomic and ordered
        5, 14, 0, 152, 0, 0, 0, 0x11, // flow mod with the same transaction id
        0, 0, 0, 0, 0, 0, 0, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, // cookie, mask
        3, 0, 0, 0, 0, 0, 1, 2, // table, add, timeouts, priority
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, // buffer, port, group
        0, 1, 0, 30, // match, without its padding
        0x80, 0, 0, 4, 0, 0, 0, 7, // OXM_OF_IN_PORT
        0x80, 0, 0x0a, 2, 8, 0, // OXM_OF_ETH_TYPE
        0x80, 0, 0x17, 8, 10, 1, 0, 0, 255, 255, 0, 0, // OXM_OF_IPV4_SRC with a mask
        0, 0,
        0, 4, 0, 64, 0, 0, 0, 0, // apply actions
        0xff, 0xff, 0, 24, 0, 0, 0x23, 0x20, 0, 7, // NXAST_REG_LOAD
        0x02, 0x17, 0, 1, 2, 4, 0, 0, 0, 0, 0, 0xab, 0xcd, 0xef, // bits 8 to 31 of NXM_NX_REG1
        0, 25, 0, 16, 0x80, 0, 6, 6, 2, 0, 0, 0, 0, 9, 0, 0, // set OXM_OF_ETH_DST
        0, 0, 0, 16, 0xff, 0xff, 0xff, 0xfe, 0xff, 0xff, 0, 0, 0, 0, 0, 0, // output
        0, 1, 0, 8, 4, 0, 0, 0, // go to table
    ];
    assert_eq!(bytes, wanted);
}

#[test]
fn a_match_is_the_same_in_any_order() {
    let one = Match::new().ipv4().tcp_dst(80).in_port(1).eth_src(Mac::BROADCAST);
    let other = Match::new().eth_src(Mac::BROADCAST).tcp_dst(80).in_port(1).ipv4();
    assert_eq!(one, other);
    assert_eq!(
        one.to_string(),
        "in_port=1,eth_src=ff:ff:ff:ff:ff:ff,eth_type=0x800,nw_proto=0x6,tcp_dst=0x50"
    );
    let net: ipnet::Ipv4Net = "10.1.2.3/16".parse().unwrap();
    assert_eq!(Match::new().ipv4_src(net), Match::new().ipv4_src(net.trunc()));
    // A mask without bits asks for nothing.
    assert_eq!(Match::new().with(Field::metadata(5, 0)), Match::new());
}

#[test]
fn parts_of_a_register_add_up() {
    let low = Subfield::register::<4, 0, 16>();
    let high = Subfield::register::<4, 24, 8>();
    let match_ = Match::new().with(high.matching(0xab).unwrap()).with(low.matching(5).unwrap());
    assert_eq!(match_.to_string(), "reg4=0xab000005/0xff00ffff");
    assert_eq!(match_.with(low.matching(6).unwrap()).to_string(), "reg4=0xab000006/0xff00ffff");
}

#[test]
fn values_and_parts_that_do_not_fit() {
    let part = Subfield::register::<0, 8, 8>();
    assert_eq!(part.load(256).unwrap_err().to_string(), "0x100 does not fit into the 8 bits of reg0");
    assert_eq!(part.matching(256), Err(FieldError::TooWide { kind: FieldKind::Reg0, bits: 8, value: 256 }));
    for (first_bit, bits) in [(0, 0), (0, 33), (32, 1), (31, 2), (255, 255)] {
        assert!(Subfield::new(FieldKind::Reg0, first_bit, bits).is_err(), "{first_bit} {bits}");
    }
    assert!(Subfield::new(FieldKind::EthType, 0, 8).unwrap().matching(1).is_err());
    assert!(Field::new(FieldKind::InPort, 0, 1).is_err());
    assert!(Field::exact(FieldKind::IpFrag, 4).is_err());
    assert!(Field::vlan(4096).is_err());
    assert!(Action::copy(FieldKind::EthSrc, FieldKind::TunId).is_err());
}

#[test]
fn refusals_are_read() {
    let read = |bytes: &[u8]| {
        SwitchError::decode(Reader::new("error message", bytes)).map(|error| error.to_string())
    };
    assert_eq!(read(&[0, 4, 0, 9, 5, 14]).unwrap(), "OFPET_BAD_MATCH OFPBMC_BAD_PREREQ");
    assert_eq!(read(&[0, 4, 1, 0]).unwrap(), "OFPET_BAD_MATCH code 256");
    assert_eq!(read(&[0, 99, 0, 1]).unwrap(), "type 99 code 1");
    assert_eq!(read(&[0xff, 0xff, 0, 2, 0, 0, 0x23, 0x20]).unwrap(), "OFPET_EXPERIMENTER 0x00002320 code 2");
    assert!(read(&[0xff, 0xff, 0, 2]).is_err());
    assert!(read(&[0, 4, 0]).is_err());
}

#[test]
fn headers_are_read() {
    assert_eq!(Header::peek(&[5, 2, 0, 9, 0, 0, 0]), Ok(None));
    let header = Header { version: 5, message_type: 2, length: 9, xid: 0x0102_0304 };
    assert_eq!(Header::peek(&[5, 2, 0, 9, 1, 2, 3, 4]), Ok(Some(header)));
    let short = DecodeError::BadLength { what: "message", length: 7 };
    assert_eq!(Header::peek(&[5, 2, 0, 7, 1, 2, 3, 4]), Err(short));
}

/// What the switch says about a flow, as `ofp_multipart_reply` with one `ofp_flow_stats`, after the header.
fn flow_stats_body(flow: &Flow) -> Vec<u8> {
    let mut out = Writer::default();
    out.u16(1); // OFPMP_FLOW
    out.zeros(6);
    let start = out.len();
    out.u16(0);
    out.u8(flow.table);
    out.u8(0);
    out.u32(3);
    out.u32(500_000_000);
    out.u16(flow.priority);
    out.u16(flow.idle_timeout);
    out.u16(flow.hard_timeout);
    out.zeros(6);
    out.u64(flow.cookie);
    out.u64(12);
    out.u64(3456);
    // From the match on, a flow mod and its statistics are alike.
    let add = written(|out| FlowMod::Add(flow.clone()).encode(out).unwrap());
    out.bytes(&add[40..]);
    out.set_length(start, start).unwrap();
    out.into_bytes()
}

fn decode(body: &[u8]) -> Result<Vec<FlowStats>, DecodeError> {
    let mut flows = Vec::new();
    message::flow_stats_reply(body, &mut flows).map(|_| flows)
}

/// Gives the bytes to everything that reads.
fn read_all(bytes: &[u8]) {
    let _ = Header::peek(bytes);
    let _ = decode(bytes);
    let _ = message::port_desc_reply(bytes, &mut Vec::new());
    let _ = message::hello_accepts_us(5, bytes);
    let _ = of::PortStatus::decode(bytes);
    let _ = of::Features::decode(bytes);
    let _ = SwitchError::decode(Reader::new("error message", bytes));
    let _ = Match::decode(&mut Reader::new("match", bytes));
    let _ = Action::decode_list(Reader::new("actions", bytes));
}

proptest! {
    #[test]
    fn what_we_write_we_read(flow in arbitrary::flow()) {
        let stats = decode(&flow_stats_body(&flow)).unwrap();
        let duration = std::time::Duration::from_millis(3500);
        prop_assert_eq!(stats, [FlowStats { flow, packets: 12, bytes: 3456, duration }]);
    }

    #[test]
    fn damaged_bytes_are_read_or_refused(
        flow in arbitrary::flow(),
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..8),
        length in any::<proptest::sample::Index>(),
    ) {
        let mut body = flow_stats_body(&flow);
        for (at, octet) in damage {
            let at = at.index(body.len());
            body[at] = octet;
        }
        read_all(&body);
        // What was understood can be written again.
        for stats in decode(&body).unwrap_or_default() {
            let _ = FlowMod::Add(stats.flow).encode(&mut Writer::default());
        }
        let cut = length.index(body.len());
        read_all(&body[..cut]);
        read_all(&body[cut..]);
    }

    #[test]
    fn random_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        read_all(&bytes);
    }

    #[test]
    fn a_cut_answer_is_refused(flow in arbitrary::flow(), length in any::<proptest::sample::Index>()) {
        let body = flow_stats_body(&flow);
        let cut = 8 + length.index(body.len() - 8);
        prop_assert_eq!(decode(&body[..cut]).is_err(), cut != 8);
    }
}
