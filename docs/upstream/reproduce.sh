#!/bin/bash
# Shows one shortfall of strongSwan (see README.md beside this) with stock packages and nothing else.
#
#   reproduce.sh transport-proxy-nat | child-by-selector | kmaddress-port | no-follow
#
# Needs root, iproute2, charon-systemd, swanctl, python3, and iptables-legacy for the first. Makes
# three network namespaces and two charons of its own and removes them. The last line says
# "REPRODUCED" (status 0) or "NOT REPRODUCED" (status 1); anything else is status 2.
set -eu
case=${1:?which case?}
run=up$$
work=$(mktemp -d)
i=$run-i n=$run-n r=$run-r # initiator, router or NAT, responder
pids=

clean_up() {
    for pid in $pids; do kill "$pid" 2>/dev/null || true; done
    for pid in $pids; do wait "$pid" 2>/dev/null || true; done
    for ns in $i $n $r; do ip netns del "$ns" 2>/dev/null || true; done
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 2' INT TERM

# 10.0.0.2 and 10.0.0.3 - 10.0.0.1 [router] 192.0.2.1 - 192.0.2.2
for ns in $i $n $r; do
    ip netns add "$ns"
    ip -n "$ns" link set lo up
done
ip -n "$n" link add inside type veth peer name eth netns "$i"
ip -n "$n" link add outside type veth peer name eth netns "$r"
ip -n "$n" addr add 10.0.0.1/24 dev inside
ip -n "$n" addr add 192.0.2.1/24 dev outside
ip -n "$i" addr add 10.0.0.2/24 dev eth
ip -n "$i" addr add 10.0.0.3/24 dev eth
ip -n "$r" addr add 192.0.2.2/24 dev eth
ip -n "$n" link set inside up
ip -n "$n" link set outside up
ip -n "$i" link set eth up
ip -n "$r" link set eth up
ip -n "$i" route add default via 10.0.0.1 src 10.0.0.2
ip -n "$r" route add default via 192.0.2.1
ip netns exec "$n" sysctl -qw net.ipv4.ip_forward=1

# charon END: with the connection in $work/END/swanctl.conf
charon() {
    local dir=$work/$1
    cat >"$dir/strongswan.conf" <<END
charon {
    load = nonce openssl kdf kernel-netlink socket-default vici
    install_routes = no
    filelog {
        log {
            path = $dir/log
            flush_line = yes
            default = 1
        }
    }
    plugins {
        vici {
            socket = unix://$dir/vici
        }
        kernel-netlink {
            roam_events = no
        }
        socket-default {
            set_source = ${set_source:-yes}
        }
    }
}
END
    STRONGSWAN_CONF=$dir/strongswan.conf ip netns exec "$run-$1" charon-systemd >/dev/null 2>&1 &
    pids="$pids $!"
    for _ in $(seq 200); do
        if swanctl --stats --uri "unix://$dir/vici" >/dev/null 2>&1; then break; fi
        sleep 0.1
    done
    swanctl --load-all --noprompt --file "$dir/swanctl.conf" --uri "unix://$dir/vici" >/dev/null 2>&1
}

ctl() { # ctl END COMMAND...
    local end=$1
    shift
    swanctl "$@" --uri "unix://$work/$end/vici" 2>&1
}

# connection END LOCAL REMOTE CHILDREN
connection() {
    mkdir "$work/$1"
    local own=$1 other=i
    [ "$1" = i ] && other=r
    cat >"$work/$1/swanctl.conf" <<END
connections {
    c {
        version = 2
        mobike = no
        local_addrs = $2
        remote_addrs = $3
        local_port = 4500
        remote_port = 4500
        proposals = aes128gcm16-prfsha256-ecp256
        local {
            auth = psk
            id = $own
        }
        remote {
            auth = psk
            id = $other
        }
        children {
            $4
        }
    }
}
secrets {
    ike-1 {
        secret = "a secret of this test only"
    }
}
END
}

verdict() { # verdict TEXT PATTERN
    echo "$1" | sed 's/^/    /'
    if echo "$1" | grep -q "$2"; then
        echo "REPRODUCED"
    else
        echo "NOT REPRODUCED"
        exit 1
    fi
}

esp="esp_proposals = aes128gcm16"
case $case in
transport-proxy-nat)
    ip netns exec "$n" iptables-legacy -t nat -A POSTROUTING -o outside -j MASQUERADE
    proxy="mode = transport_proxy
        $esp"
    connection i %any 192.0.2.2 "p { $proxy
        local_ts = 2001:db8::1[135]
        remote_ts = 2001:db8::2[135]
    }"
    connection r 192.0.2.2 %any "p { $proxy
        local_ts = 2001:db8::2[135]
        remote_ts = 2001:db8::1[135]
    }"
    charon i
    charon r
    verdict "$(ctl i --initiate --child p --timeout 10 || true)" TS_UNACCEPTABLE
    ;;
child-by-selector)
    here="$esp
        local_ts = 2001:db8::1[135]
        remote_ts = 2001:db8::2[135]"
    there="$esp
        local_ts = 2001:db8::2[135]
        remote_ts = 2001:db8::1[135]"
    connection i %any 192.0.2.2 "tunnel { mode = tunnel
        $here
    }"
    connection r 192.0.2.2 %any "proxy { mode = transport_proxy
        $there
    }
    tunnel { mode = tunnel
        $there
    }"
    charon i
    charon r
    ctl i --initiate --child tunnel --timeout 10 >/dev/null || true
    verdict "$(ctl r --list-sas)" 'proxy: #'
    ;;
kmaddress-port)
    connection i 10.0.0.2 192.0.2.2 "d { $esp
        local_ts = 2001:db8::1/128
        remote_ts = ::/0
    }"
    connection r 192.0.2.2 %any "d { $esp
        local_ts = ::/0
        remote_ts = 2001:db8::1/128
    }"
    charon i
    charon r
    ctl i --initiate --child d --timeout 10 >/dev/null
    ctl i --list-sas | sed -n '1,3s/^/    before: /p'
    reqid=$(ctl i --list-sas | sed -n 's/.*d: #[0-9]*, reqid \([0-9]*\),.*/\1/p')
    # XFRM_MSG_MIGRATE of the outbound policy 2001:db8::1/128 -> ::/0 from 10.0.0.2 to 10.0.0.3,
    # with XFRMA_KMADDRESS: struct xfrm_userpolicy_id, xfrm_user_kmaddress, xfrm_user_migrate.
    ip netns exec "$i" python3 - "$reqid" <<'END'
import socket, struct, sys
a = lambda text: socket.inet_aton(text).ljust(16, b"\0")
def attribute(number, value):
    return struct.pack("=HH", 4 + len(value), number) + value.ljust(-(-len(value) // 4) * 4, b"\0")
home = socket.inet_pton(socket.AF_INET6, "2001:db8::1")
selector = struct.pack("=16s16sHHHHHBBBxxxiI", bytes(16), home, 0, 0, 0, 0, socket.AF_INET6, 0, 128, 0, 0, 0)
body = struct.pack("=56sIBxxx", selector, 0, 1)
body += attribute(19, struct.pack("=16s16sIHxx", a("10.0.0.3"), a("192.0.2.2"), 0, socket.AF_INET))
body += attribute(17, struct.pack("=16s16s16s16sBBHIHH", a("192.0.2.2"), a("10.0.0.2"), a("192.0.2.2"),
    a("10.0.0.3"), 50, 1, 0, int(sys.argv[1]), socket.AF_INET, socket.AF_INET))
netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 6)
netlink.send(struct.pack("=IHHII", 16 + len(body), 0x21, 5, 1, 0) + body)
error = struct.unpack_from("=i", netlink.recv(4096), 16)[0]
sys.exit(f"MIGRATE: error {-error}" if error else 0)
END
    for _ in $(seq 50); do
        ctl i --list-sas | grep -q "10.0.0.3" && break
        sleep 0.1
    done
    verdict "$(ctl i --list-sas)" "10.0.0.3\[500\]"
    ;;
no-follow)
    set_source=no
    connection i %any 192.0.2.2 "d { $esp
        local_ts = 2001:db8::1/128
        remote_ts = ::/0
    }"
    connection r 192.0.2.2 %any "d { $esp
        local_ts = ::/0
        remote_ts = 2001:db8::1/128
    }"
    charon i
    set_source=yes
    charon r
    ctl i --initiate --child d --timeout 10 >/dev/null
    ip -n "$i" route replace default via 10.0.0.1 src 10.0.0.3
    ctl i --rekey --ike c >/dev/null
    for _ in $(seq 50); do
        grep -q "from 10.0.0.3" "$work/r/log" && break
        sleep 0.1
    done
    grep "from 10.0.0.3" "$work/r/log" | head -1 | sed 's/^/    responder: /'
    verdict "$(ctl r --list-sas)" "remote .* @ 10.0.0.2\["
    ;;
*)
    sed -n '2,8s/^# \?//p' "$0"
    exit 2
    ;;
esac
