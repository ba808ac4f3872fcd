#!/bin/sh
# The home agent and the three mobile nodes of inventory.toml in network namespaces of one machine:
#
#     sh try.sh DIRECTORY [COMMAND...]
#
# renders them into DIRECTORY, starts charons and daemons by the commands of the rendered READMEs,
# attaches the mobile nodes, runs COMMAND (or a shell) and takes everything down. As root, on a
# kernel with ESP; namespaces are called try-ha, try-mn1 and so on, and try-net is the network.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
directory=$(cd "$1" && pwd)
shift
mobile_nodes="mn1 mn2 mn3"

# A command in a node: inside ha ip address
inside() { ip netns exec "try-$@"; }

take_down() {
    trap - EXIT
    for signal in TERM KILL; do
        for node in $mobile_nodes ha net; do
            for pid in $(ip netns pids "try-$node" 2>/dev/null); do
                kill -s $signal "$pid" 2>/dev/null || true
            done
        done
        for _ in 1 2 3 4 5 6 7 8 9 10; do  # they leave the kernel as it was: give them time
            left=
            for node in $mobile_nodes ha; do
                left="$left$(ip netns pids "try-$node" 2>/dev/null)"
            done
            [ -z "$left" ] && break
            sleep 1
        done
    done
    for node in $mobile_nodes ha net; do
        ip netns del "try-$node" 2>/dev/null || true
    done
}
trap take_down EXIT
trap 'exit 130' INT TERM HUP

dsmip-ipsec render "$here/inventory.toml" --out "$directory"

# A router with two networks: 192.0.2.0/24 and 2001:db8:1::/64, that mobile nodes visit, and one
# that leads to the home agent.
for node in $mobile_nodes ha net; do
    ip netns add "try-$node"
    inside $node ip link set lo up
done
inside net ip link add visited type bridge
inside net ip link set visited up
inside net ip address add 192.0.2.1/24 dev visited
inside net ip address add 2001:db8:1::1/64 dev visited nodad
number=10
for node in $mobile_nodes; do
    number=$((number + 1))
    inside net ip link add $node type veth peer name eth0 netns "try-$node"
    inside net ip link set $node master visited up
    inside $node ip link set eth0 up
    inside $node ip address add 192.0.2.$number/24 dev eth0
    inside $node ip route add default via 192.0.2.1
    inside $node ip address add 2001:db8:1::$number/64 dev eth0 nodad
    inside $node ip route add default via 2001:db8:1::1
done
inside net ip link add ha type veth peer name eth0 netns try-ha
inside net ip link set ha up
inside net ip address add 203.0.113.1/25 dev ha
inside net ip address add 2001:db8:2::1/64 dev ha nodad
inside net ip route add 2001:db8:100::/64 via 2001:db8:2::2
inside ha ip link set eth0 up
inside ha ip address add 203.0.113.2/25 dev eth0
inside ha ip route add default via 203.0.113.1
inside ha ip address add 2001:db8:2::2/64 dev eth0 nodad
inside ha ip route add default via 2001:db8:2::1
inside ha ip link add home0 type bridge # the home link
inside ha ip link set home0 up
inside ha ip address add 2001:db8:100::1/64 dev home0 nodad
for node in net ha; do
    inside $node sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
done

for node in ha $mobile_nodes; do
    echo "$node: charon and daemon"
    # The five commands before the README's "After a new rendering".
    sed -n '/^After a new/q; s/^    //p' "$directory/$node/README.md" >"$directory/$node/start.sh"
    inside $node sh -e "$directory/$node/start.sh" >"$directory/$node/start.log" 2>&1
done
number=10
for node in $mobile_nodes; do
    number=$((number + 1))
    echo "$node attaches"
    dsmip-ipsec control "$directory/$node/daemon.toml" attach \
        interface=eth0 care_of_address=192.0.2.$number gateway=192.0.2.1
done
dsmip-ipsec control "$directory/ha/daemon.toml" status

[ $# -gt 0 ] || set -- "${SHELL:-/bin/sh}"
export directory
"$@"
