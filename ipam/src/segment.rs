//! A macvlan segment's record, as people write it.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde_json::Value;
use tenon_tenant::{FieldError, Fields, shorten};

use crate::SegmentError;
use crate::addresses::{Family, Pool, overlap, role_in};

/// QuarantineSeconds where the record has none: for about as long a neighbour goes on using an entry that nobody confirms
/// (RFC 4861 section 10, REACHABLE_TIME; arp(7), base_reachable_time_ms).
pub const DEFAULT_QUARANTINE_SECONDS: u32 = 30;

/// ProbeMs where the record has none.
pub const DEFAULT_PROBE_MS: u32 = 100;

/// A segment: an Ethernet that pods join by macvlan, and the addresses they get there. Read from `/segments/<segment>`:
/// `{"Name":"vlan100","Master":"eth0","Vlan":100,"Mode":"bridge","Subnet":"10.100.0.0/24","Gateway":"10.100.0.1",
/// "RangeStart":"","RangeEnd":"","Exclude":[],"Routes":[],"Mtu":0,"HostAccess":true}`.
///
/// Subnet, Gateway, RangeStart and RangeEnd hold one value or, separated by a comma, one of each family, as dual-stack
/// settings of Kubernetes do: `"Subnet":"10.100.0.0/24,fd00:100::/64"`. What belongs together is told by the family;
/// the order of Subnet is the order of a pod's addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// The segment's name, which is also the last part of the record's key.
    pub name: String,
    /// The host's interface on the physical network, unless the node's configuration names another.
    pub master: String,
    /// The VLAN on the master; `None` for untagged.
    pub vlan: Option<u16>,
    /// How macvlan interfaces of one master see each other.
    pub mode: Mode,
    /// The subnet, or the two in the order in which a pod gets its addresses. Never empty.
    pub subnets: Vec<SegmentSubnet>,
    /// What the record's Routes say. [`Segment::routes`] is what a pod gets.
    pub extra_routes: Vec<SegmentRoute>,
    /// The pods' MTU in bytes; `None` for the master's. A master with a smaller one sets the limit.
    pub mtu: Option<u32>,
    /// Whether the host and its pods on the segment shall reach each other.
    pub host_access: bool,
    /// For how long after its release an address is kept for the pod of the same namespace and name, in seconds.
    pub sticky_seconds: u32,
    /// For how long after its release an address is given to no other pod, in seconds.
    pub quarantine_seconds: u32,
    /// How long to wait for somebody to answer for an address before it is used, in milliseconds; 0: do not ask.
    pub probe_ms: u32,
}

/// The mode of a macvlan interface (ip-link(8), "MACVLAN and MACVTAP Type Support").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Pods on one master reach each other directly.
    Bridge,
    /// Pods on one master do not reach each other.
    Private,
    /// What pods send to each other goes out to the switch, which may reflect it.
    Vepa,
    /// The pod has the master for itself.
    Passthru,
}

/// The part of a segment that one family has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentSubnet {
    /// The network, without host bits.
    pub subnet: IpNet,
    /// The router.
    pub gateway: Option<IpAddr>,
    /// The first address of the range that pods get addresses from.
    pub first: IpAddr,
    /// The last address of that range.
    pub last: IpAddr,
    /// The addresses that are given out: the range without what Exclude names, the gateway, and the addresses that no
    /// interface can have.
    pub pool: Pool,
}

/// A route of a segment's pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentRoute {
    /// The destination, without host bits.
    pub dst: IpNet,
    /// The next hop; `None` where the destination is on the segment itself.
    pub gw: Option<IpAddr>,
}

/// Networks without addresses for pods (RFC 6890, RFC 4291 section 2.4).
const RESERVED: [(&str, &str); 6] = [
    ("0.0.0.0/8", "this host"),
    ("127.0.0.0/8", "loopback"),
    ("224.0.0.0/3", "multicast and reserved"),
    ("::/8", "unspecified, loopback and IPv4-mapped"),
    ("fe80::/10", "link-local"),
    ("ff00::/8", "multicast"),
];

/// The least MTU in bytes that carries a family (RFC 791 section 3.2, RFC 8200 section 5).
const fn least_mtu(family: Family) -> u32 {
    match family {
        Family::V4 => 68,
        Family::V6 => 1280,
    }
}

impl Segment {
    /// Reads the text found under a key that ends in `key`. Unknown fields are passed over.
    ///
    /// What may be left out (or be empty): Name (the key says it), Vlan (0: untagged), Mode (bridge), Gateway (none),
    /// RangeStart and RangeEnd (the whole subnet), Exclude, Routes, Mtu (0: the master's), HostAccess (true),
    /// StickySeconds (0: off), QuarantineSeconds and ProbeMs (their defaults; 0: off).
    ///
    /// Whether the segment gets along with the others is for [`overlaps`](crate::overlaps) to say.
    ///
    /// # Errors
    /// See [`SegmentError`].
    pub fn parse(key: &str, text: &[u8]) -> Result<Segment, SegmentError> {
        let mut fields = Fields::parse(text)?;
        let found = fields.take_text("Name")?.unwrap_or_default();
        if !found.is_empty() && found != key {
            return Err(SegmentError::Name { key: shorten(key), found: shorten(&found) });
        }
        let master = filled(&mut fields, "Master")?
            .ok_or(SegmentError::Missing { field: "Master", example: "\"eth0\"" })?;
        if master.len() > 15 || master.contains(|c: char| c == '/' || c.is_whitespace()) {
            return Err(SegmentError::Master(shorten(&master)));
        }
        let vlan = fields.take_integer("Vlan", 0, 4094)?.filter(|vlan| *vlan != 0).map(|vlan| vlan as u16);
        let mode = filled(&mut fields, "Mode")?.map_or(Ok(Mode::Bridge), |mode| mode.parse())?;
        let subnets = parse_subnets(&mut fields)?;
        let mtu = fields.take_integer("Mtu", 0, u16::MAX.into())?.filter(|mtu| *mtu != 0);
        for family in subnets.iter().map(SegmentSubnet::family) {
            let least = least_mtu(family);
            if let Some(mtu) = mtu.filter(|mtu| *mtu < least) {
                return Err(SegmentError::Mtu { mtu, family, least });
            }
        }
        let mut seconds = |field| fields.take_integer(field, 0, u32::MAX);
        let sticky_seconds = seconds("StickySeconds")?.unwrap_or(0);
        let quarantine_seconds = seconds("QuarantineSeconds")?.unwrap_or(DEFAULT_QUARANTINE_SECONDS);
        Ok(Segment {
            name: key.to_owned(),
            master,
            vlan,
            mode,
            extra_routes: parse_routes(&mut fields, &subnets)?,
            subnets,
            mtu,
            host_access: fields.take_bool("HostAccess")?.unwrap_or(true),
            sticky_seconds,
            quarantine_seconds,
            probe_ms: fields.take_integer("ProbeMs", 0, 60_000)?.unwrap_or(DEFAULT_PROBE_MS),
        })
    }

    /// The part of the segment that an address belongs to.
    pub fn subnet_of(&self, ip: IpAddr) -> Option<&SegmentSubnet> {
        self.subnets.iter().find(|subnet| subnet.subnet.contains(&ip))
    }

    /// A pod's routes: a default route by way of each gateway, unless Routes has one for its family, then those of
    /// Routes, where one without a next hop goes by way of the gateway of its family, if there is one.
    pub fn routes(&self) -> Vec<SegmentRoute> {
        let gateway = |family| self.subnets.iter().find(|s| s.family() == family).and_then(|s| s.gateway);
        let has_default = |family| {
            let mut defaults = self.extra_routes.iter().filter(|route| route.dst.prefix_len() == 0);
            defaults.any(|route| Family::of(route.dst.addr()) == family)
        };
        let mut routes = Vec::new();
        for subnet in self.subnets.iter().filter(|subnet| !has_default(subnet.family())) {
            let any = match subnet.family() {
                Family::V4 => IpNet::V4(Default::default()),
                Family::V6 => IpNet::V6(Default::default()),
            };
            routes.extend(subnet.gateway.map(|gw| SegmentRoute { dst: any, gw: Some(gw) }));
        }
        routes.extend(self.extra_routes.iter().map(|route| SegmentRoute {
            dst: route.dst,
            gw: route.gw.or_else(|| gateway(Family::of(route.dst.addr()))),
        }));
        routes
    }
}

impl SegmentSubnet {
    /// The family of its addresses.
    pub fn family(&self) -> Family {
        Family::of(self.subnet.addr())
    }
}

impl FromStr for Mode {
    type Err = SegmentError;

    fn from_str(text: &str) -> Result<Mode, SegmentError> {
        match text {
            "bridge" => Ok(Mode::Bridge),
            "private" => Ok(Mode::Private),
            "vepa" => Ok(Mode::Vepa),
            "passthru" => Ok(Mode::Passthru),
            _ => Err(SegmentError::Mode(shorten(text))),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Bridge => "bridge",
            Mode::Private => "private",
            Mode::Vepa => "vepa",
            Mode::Passthru => "passthru",
        })
    }
}

fn filled(fields: &mut Fields, field: &'static str) -> Result<Option<String>, FieldError> {
    Ok(fields.take_text(field)?.filter(|text| !text.is_empty()))
}

fn parse_subnets(fields: &mut Fields) -> Result<Vec<SegmentSubnet>, SegmentError> {
    let text = filled(fields, "Subnet")?
        .ok_or(SegmentError::Missing { field: "Subnet", example: "\"10.100.0.0/24\"" })?;
    let networks = text.split(',').map(|text| parse_network("Subnet", text.trim()));
    let networks = networks.collect::<Result<Vec<IpNet>, _>>()?;
    one_of_each("Subnet", &text, networks.iter().map(IpNet::addr))?;

    let mut addresses = |field| -> Result<Vec<IpAddr>, SegmentError> {
        let Some(text) = filled(fields, field)? else { return Ok(Vec::new()) };
        let parse = |text: &str| {
            let not_address = || SegmentError::NotAddress { field: field.to_owned(), value: shorten(text) };
            text.parse().map_err(|_| not_address())
        };
        let addresses = text.split(',').map(|text| parse(text.trim())).collect::<Result<Vec<IpAddr>, _>>()?;
        one_of_each(field, &text, addresses.iter().copied())?;
        for ip in &addresses {
            belongs(field, *ip, &networks)?;
        }
        Ok(addresses)
    };
    let gateways = addresses("Gateway")?;
    let (starts, ends) = (addresses("RangeStart")?, addresses("RangeEnd")?);
    let exclude = parse_list(fields, "Exclude", |field, value| parse_excluded(field, value, &networks))?;
    networks
        .iter()
        .map(|subnet| {
            let own = |values: &[IpAddr]| {
                values.iter().copied().find(|value| Family::of(*value) == Family::of(subnet.addr()))
            };
            resolve_subnet(*subnet, own(&gateways), own(&starts), own(&ends), &exclude)
        })
        .collect()
}

fn resolve_subnet(
    subnet: IpNet,
    gateway: Option<IpAddr>,
    start: Option<IpAddr>,
    end: Option<IpAddr>,
    exclude: &[IpNet],
) -> Result<SegmentSubnet, SegmentError> {
    for (text, role) in RESERVED {
        let reserved: Option<IpNet> = text.parse().ok();
        if let Some(reserved) = reserved.filter(|reserved| overlap(*reserved, subnet)) {
            return Err(SegmentError::NotUnicast { subnet, reserved, role });
        }
    }
    for (field, ip) in [("Gateway", gateway), ("RangeStart", start), ("RangeEnd", end)] {
        // An IPv6 router may be known by its link-local address, as in its own advertisements (RFC 4861 section 4.2).
        let fits = |ip: &IpAddr| subnet.contains(ip) || field == "Gateway" && is_link_local(*ip);
        if let Some(ip) = ip.filter(|ip| !fits(ip)) {
            let (value, subnet) = (ip.to_string(), subnet.to_string());
            return Err(SegmentError::Outside { field: field.to_owned(), value, subnet });
        }
    }
    if let Some(gateway) = gateway
        && let Some(role) = role_in(subnet, gateway)
    {
        return Err(SegmentError::GatewayRole { gateway, role, subnet });
    }
    let (first, last) = (start.unwrap_or(subnet.network()), end.unwrap_or(subnet.broadcast()));
    if first > last {
        return Err(SegmentError::Reversed { first, last });
    }
    let unusable =
        [subnet.network(), subnet.broadcast()].into_iter().filter(|ip| role_in(subnet, *ip).is_some());
    let single = unusable.chain(gateway).map(IpNet::from);
    let pool = Pool::new(first, last, exclude.iter().copied().chain(single));
    if pool.count() == 0 {
        return Err(SegmentError::Empty { first, last });
    }
    Ok(SegmentSubnet { subnet, gateway, first, last, pool })
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

fn parse_network(field: &str, text: &str) -> Result<IpNet, SegmentError> {
    let not_network = || SegmentError::NotNetwork { field: field.to_owned(), value: shorten(text) };
    let value: IpNet = text.parse().map_err(|_| not_network())?;
    let meant = value.trunc();
    if meant == value {
        Ok(value)
    } else {
        Err(SegmentError::HostBits { field: field.to_owned(), value, meant })
    }
}

fn one_of_each(
    field: &'static str,
    text: &str,
    addresses: impl Iterator<Item = IpAddr>,
) -> Result<(), SegmentError> {
    let mut families = Vec::new();
    for family in addresses.map(Family::of) {
        if families.contains(&family) {
            return Err(SegmentError::FamilyTwice { field, value: shorten(text), family });
        }
        families.push(family);
    }
    Ok(())
}

/// An error unless the segment has a subnet of the address' family.
fn belongs(field: &str, ip: IpAddr, networks: &[IpNet]) -> Result<(), SegmentError> {
    let family = Family::of(ip);
    if networks.iter().any(|network| Family::of(network.addr()) == family) {
        return Ok(());
    }
    Err(SegmentError::NoSubnet { field: field.to_owned(), value: ip.to_string(), family })
}

fn parse_list<T>(
    fields: &mut Fields,
    field: &'static str,
    parse: impl Fn(String, &Value) -> Result<T, SegmentError>,
) -> Result<Vec<T>, SegmentError> {
    match fields.take(field) {
        None => Ok(Vec::new()),
        Some(Value::Array(values)) => values
            .iter()
            .enumerate()
            .map(|(place, value)| parse(format!("{field}[{place}]"), value))
            .collect(),
        Some(other) => Err(SegmentError::NotList { field, value: shorten(&other.to_string()) }),
    }
}

fn parse_excluded(field: String, value: &Value, networks: &[IpNet]) -> Result<IpNet, SegmentError> {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let excluded = match text.parse::<IpAddr>() {
        Ok(ip) => IpNet::from(ip),
        Err(_) => parse_network(&field, &text)?,
    };
    if networks.iter().any(|network| overlap(*network, excluded)) {
        return Ok(excluded);
    }
    let subnets: Vec<String> = networks.iter().map(IpNet::to_string).collect();
    Err(SegmentError::Outside { field, value: text, subnet: subnets.join(",") })
}

/// Reads Routes: objects with `dst` and perhaps `gw`, as in CNI results. What else a route may hold there is passed
/// over.
fn parse_routes(fields: &mut Fields, subnets: &[SegmentSubnet]) -> Result<Vec<SegmentRoute>, SegmentError> {
    let networks: Vec<IpNet> = subnets.iter().map(|subnet| subnet.subnet).collect();
    parse_list(fields, "Routes", |field, value| {
        let not_route =
            || SegmentError::NotRoute { field: field.clone(), value: shorten(&value.to_string()) };
        let text = |name| match value.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
            Some(_) => Err(not_route()),
        };
        let dst = parse_network(&format!("{field}.dst"), text("dst")?.ok_or_else(not_route)?)?;
        belongs(&format!("{field}.dst"), dst.addr(), &networks)?;
        let Some(gw) = text("gw")? else { return Ok(SegmentRoute { dst, gw: None }) };
        let gw_field = format!("{field}.gw");
        let not_address = SegmentError::NotAddress { field: gw_field.clone(), value: shorten(gw) };
        let gw: IpAddr = gw.parse().map_err(|_| not_address)?;
        if Family::of(gw) != Family::of(dst.addr()) {
            return Err(SegmentError::RouteFamilies { field, dst, gw });
        }
        match networks.iter().find(|network| Family::of(network.addr()) == Family::of(gw)) {
            Some(subnet) if !subnet.contains(&gw) && !is_link_local(gw) => {
                let (value, subnet) = (gw.to_string(), subnet.to_string());
                Err(SegmentError::Outside { field: gw_field, value, subnet })
            }
            _ => Ok(SegmentRoute { dst, gw: Some(gw) }),
        }
    })
}
