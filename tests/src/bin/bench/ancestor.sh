#!/bin/sh
# Attaches or detaches a pod the way that Tenon's ancestor did: one process for each step, all under one lock.
# usage: ancestor.sh attach|detach OVS_DIRECTORY NETNS LINK ADDRESS MAC VNI
set -eu
verb=$1 dir=$2 netns=$3 link=$4 address=$5 mac=$6 vni=$7
gateway=10.77.255.254

vsctl() { ovs-vsctl --db="unix:$dir/db.sock" "$@"; }
add() { ovs-ofctl -O OpenFlow13 add-flow "unix:$dir/br0.mgmt" "$1"; }
delete() { ovs-ofctl -O OpenFlow13 del-flows "unix:$dir/br0.mgmt" "$1"; }

exec 9>"$dir/attach.lock"
flock 9

case $verb in
attach)
    ip link add "$link" type veth peer name "p$link"
    ip link set "p$link" netns "$netns"
    ip -n "$netns" link set "p$link" name eth0 address "$mac"
    ip -n "$netns" addr add "$address/16" dev eth0
    ip -n "$netns" link set eth0 up
    ip -n "$netns" route add default via "$gateway"
    ip link set "$link" up
    vsctl add-port br0 "$link"
    port=$(vsctl get interface "$link" ofport)
    load="load:$vni->NXM_NX_REG0[]"
    add "table=2,priority=100,arp,in_port=$port,arp_spa=$address,arp_sha=$mac,actions=$load,goto_table:5"
    add "table=2,priority=100,ip,in_port=$port,nw_src=$address,dl_src=$mac,actions=$load,goto_table:3"
    add "table=3,priority=50,ip,nw_src=$address,actions=goto_table:4"
    add "table=4,priority=50,ip,reg0=$vni,nw_src=$address,actions=goto_table:5"
    add "table=6,priority=100,arp,arp_tpa=$address,actions=output:$port"
    add "table=7,priority=100,ip,reg0=0,nw_dst=$address,actions=output:$port"
    add "table=7,priority=100,ip,reg0=$vni,nw_dst=$address,actions=output:$port"
    add "table=9,priority=50,ip,reg0=$vni,nw_src=$address,actions=output:2"
    ;;
detach)
    port=$(vsctl get interface "$link" ofport)
    delete "table=2,in_port=$port"
    delete "table=3,ip,nw_src=$address"
    delete "table=4,ip,nw_src=$address"
    delete "table=6,arp,arp_tpa=$address"
    delete "table=7,ip,nw_dst=$address"
    delete "table=9,ip,nw_src=$address"
    vsctl del-port br0 "$link"
    ip link del "$link"
    ;;
esac
