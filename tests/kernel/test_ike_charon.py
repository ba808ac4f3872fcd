"""Real charons on rendered files, in a guest kernel; the kernel's states are read by iproute2."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from ike_topology import (
    CARE_OF_A,
    CARE_OF_B,
    DATA_REQID,
    HOME_ADDRESS,
    HOME_AGENT,
    HOME_AGENT6,
    NAT_ADDRESS,
    SIGNALLING_REQID,
    Pair,
    deployment,
)

from dsmip_ipsec.ike import keylog, vici_types
from dsmip_ipsec.ike.charon import Charon
from dsmip_ipsec.ike.errors import (
    AuthenticationFailedError,
    CharonDiedError,
    IkeError,
    IkeTimeoutError,
    NoProposalChosenError,
    PeerUnreachableError,
    TsUnacceptableError,
)
from dsmip_ipsec.ike.inventory import Deployment, IkeSettings
from dsmip_ipsec.ike.pki import KeyType
from dsmip_ipsec.report import wireshark

pytestmark = pytest.mark.kernel


@pytest.mark.rfc("5555-5-2", "5555-5-4", "5555-5.2.1-1")
@pytest.mark.parametrize("key_type", [None, *KeyType])
async def test_establish_without_nat_is_rfc5555_5_2_1_transport(key_type: KeyType | None) -> None:
    common = deployment(key_type)
    async with Pair(network="b", mobile_node=common, home_agent=common) as pair:
        established = await pair.mn.establish("mn")
        assert not established.mirrored
        assert established.ike.local_port == established.ike.remote_port == 4500
        assert not established.ike.nat
        signalling, data = established.signalling, established.data
        assert data is not None
        assert signalling.reqid == SIGNALLING_REQID
        assert set(data.local_ts) == {"203.0.113.130/32", f"{HOME_ADDRESS}/128"}
        assert set(data.remote_ts) == {"0.0.0.0/0", "::/0"}
        here = (CARE_OF_B, HOME_AGENT)
        expected = {
            (HOME_ADDRESS, HOME_AGENT6, signalling.spi_out, SIGNALLING_REQID, "transport", None),
            (HOME_AGENT6, HOME_ADDRESS, signalling.spi_in, SIGNALLING_REQID, "transport", None),
            (*here, data.spi_out, DATA_REQID, "tunnel", None),
            (*here[::-1], data.spi_in, DATA_REQID, "tunnel", None),
        }
        assert pair.states("mn") == expected
        assert pair.states("ha") == expected
        # The SPD is ours alone: charon may only have its sockets' bypass.
        for node in ("mn", "ha"):
            policies = pair.topology.ip(node, "xfrm policy")
            assert "tmpl" not in policies
        # From the first packet on port 4500.
        assert "500" not in {
            port
            for line in pair.files["ha"].log_file.read_text().splitlines()
            if "packet: from" in line
            for port in line.replace("]", "[").split("[")[5:9:2]
        }


@pytest.mark.rfc("5555-5.2.1-1", "5555-5.2.2-1")
async def test_establish_behind_nat_negotiates_the_mirror() -> None:
    async with Pair(network="a") as pair:
        established = await pair.mn.establish("mn")
        assert established.mirrored
        assert established.ike.nat_local
        (at_ha,) = await pair.ha.list_sas()
        assert at_ha.nat_remote
        assert at_ha.remote_host == IPv4Address(NAT_ADDRESS)
        assert at_ha.remote_port != 4500
        mapped = at_ha.remote_port
        signalling, data = established.signalling, established.data
        assert data is not None
        at_home_agent = at_ha.child("signalling-tunnel")
        assert at_home_agent is not None
        assert at_home_agent.spi_in == signalling.spi_out
        tunnels = {(signalling, SIGNALLING_REQID), (data, DATA_REQID)}
        assert pair.states("mn") == {
            state
            for sa, reqid in tunnels
            for state in (
                (CARE_OF_A, HOME_AGENT, sa.spi_out, reqid, "tunnel", (4500, 4500)),
                (HOME_AGENT, CARE_OF_A, sa.spi_in, reqid, "tunnel", (4500, 4500)),
            )
        }
        # Nothing else: above all, no half-made state where the mirror has to go.
        assert pair.states("ha") == {
            state
            for sa, reqid in tunnels
            for state in (
                (NAT_ADDRESS, HOME_AGENT, sa.spi_out, reqid, "tunnel", (mapped, 4500)),
                (HOME_AGENT, NAT_ADDRESS, sa.spi_in, reqid, "tunnel", (4500, mapped)),
            )
        }
        # What is up is kept.
        again = await pair.mn.establish("mn")
        assert again.signalling.spi_in == signalling.spi_in


async def test_signalling_alone_starts_childless() -> None:
    common = deployment(settings=IkeSettings(protect_data=False))
    async with Pair(network="b", mobile_node=common, home_agent=common) as pair:
        established = await pair.mn.establish("mn", data=False)
        assert established.data is None
        assert [child.name for child in established.ike.children] == ["signalling"]


@pytest.mark.rfc("5555-5.1-6")
async def test_mobike_moves_the_ike_sa_and_its_tunnels_and_leaves_the_transport_sas() -> None:
    async with Pair(network="b", delay_ms=20) as pair:
        established = await pair.mn.establish("mn")
        data, signalling = established.data, established.signalling
        assert data is not None
        transport = {state for state in pair.states("mn") if state.mode == "transport"}

        pair.topology.prefer("a")
        await pair.mn.wait_moved("mn", local=IPv4Address(CARE_OF_A))
        at_ha = await pair.ha.wait_moved("mn", remote=IPv4Address(NAT_ADDRESS))
        states = pair.states("ha")
        mapped = at_ha.remote_port
        assert (NAT_ADDRESS, HOME_AGENT, data.spi_out, DATA_REQID, "tunnel", (mapped, 4500)) in (
            states
        )
        assert transport <= states
        assert (CARE_OF_A, HOME_AGENT, data.spi_out, DATA_REQID, "tunnel", (4500, 4500)) in (
            pair.states("mn")
        )

        # charon can't rekey the transport mode CHILD_SA behind the NAT …
        with pytest.raises(TsUnacceptableError, match="TS_UNACCEPTABLE"):
            await pair.mn.rekey("mn", "signalling")
        # … so it is replaced.
        renewed = await pair.mn.renew_signalling("mn")
        assert renewed.mirrored
        assert renewed.ike.child("signalling") is None
        assert not {state for state in pair.states("ha") if state.mode == "transport"}

        pair.topology.prefer("b")
        await pair.mn.wait_moved("mn", local=IPv4Address(CARE_OF_B))
        await pair.ha.wait_moved("mn", remote=IPv4Address(CARE_OF_B))
        for node in ("mn", "ha"):
            assert {state.ports for state in pair.states(node)} == {None}
            assert (CARE_OF_B, HOME_AGENT, data.spi_out, DATA_REQID, "tunnel", None) in (
                pair.states(node)
            )
        assert (await pair.mn.renew_signalling("mn")).signalling.spi_in != signalling.spi_in


async def test_charon_never_takes_the_home_link_for_a_path() -> None:
    async with Pair(network="a") as pair:
        await pair.mn.establish("mn")
        pair.topology.prefer("b")
        await pair.mn.wait_moved("mn", local=IPv4Address(CARE_OF_B))
        log = pair.files["mn"].log_file.read_text()
        probed = {line.split("checking path ")[1] for line in log.splitlines() if "path " in line
                  and "checking" in line}  # fmt: skip
        assert probed == {f"{CARE_OF_B}[4500] - {HOME_AGENT}[4500]"}
        assert "ADD_6_ADDR" not in log
        # Addresses that come and go elsewhere (ours on a TUN) are no news to the peer.
        updates = log.count("sending address list update")
        pair.topology.ip("mn", "addr add 2001:db8:1::77/128 dev home nodad")
        pair.topology.ip("mn", "addr add 198.51.100.77/24 dev netb")
        async with asyncio.timeout(5):
            while pair.files["mn"].log_file.read_text().count("address list update") == updates:
                await asyncio.sleep(0.02)
        assert "2001:db8:1::77" not in pair.files["mn"].log_file.read_text()


async def test_probe_works_from_both_ends_and_leaves_the_sad_alone() -> None:
    async with Pair(network="a") as pair:
        await pair.mn.establish("mn")
        before = pair.states("mn"), pair.states("ha")
        old, new = await pair.mn.probe_exchange("mn")
        assert old.initiator_spi != new.initiator_spi
        _, newest = await pair.ha.probe_exchange("mn")
        assert newest.initiator_spi not in (old.initiator_spi, new.initiator_spi)
        assert before == (pair.states("mn"), pair.states("ha"))


async def test_events_tell_what_happened() -> None:
    async with Pair(network="a") as pair, pair.ha.events() as events:
        established = await pair.mn.establish("mn")
        await pair.mn.rekey("mn", "data")
        await pair.mn.terminate("mn")
        seen: list[vici_types.IkeEvent] = []
        async with asyncio.timeout(10):
            async for event in events:
                seen.append(event)
                if isinstance(event, vici_types.IkeUpdown) and not event.up:
                    break
        ups = [e.child.name for e in seen if isinstance(e, vici_types.ChildUpdown) and e.up]
        assert ups == ["data", "signalling-tunnel"]
        (rekeyed,) = [e for e in seen if isinstance(e, vici_types.ChildRekey)]
        assert established.data is not None
        assert rekeyed.old.spi_in == established.data.spi_out
        assert rekeyed.new.spi_in != rekeyed.old.spi_in
        assert pair.states("ha") == set()


async def test_wrong_preshared_key_is_an_authentication_failure() -> None:
    async with Pair(mobile_node=deployment(), home_agent=deployment()) as pair:
        with pytest.raises(AuthenticationFailedError, match="AUTHENTICATION_FAILED") as caught:
            await pair.mn.establish("mn")
        assert "pre-shared key" in caught.value.hint
        assert pair.states("ha") == set()


async def test_certificate_of_another_ca_is_an_authentication_failure() -> None:
    ours, theirs = deployment(KeyType.ECDSA), deployment(KeyType.ECDSA)
    async with Pair(mobile_node=theirs, home_agent=ours) as pair:
        with pytest.raises(AuthenticationFailedError):
            await pair.mn.establish("mn")
        assert pair.states("ha") == set()


async def test_another_nodes_home_address_is_refused() -> None:
    common = deployment()
    thief = Deployment(
        common.home_agent,
        (replace(common.mobile_nodes[0], home_address=IPv6Address("2001:db8:1::bad")),),
        common.settings,
    )
    async with Pair(network="b", mobile_node=thief, home_agent=common) as pair:
        # IPv4 alone is granted: the data CHILD_SA is narrowed to what is this node's own.
        with pytest.raises(TsUnacceptableError):
            await pair.mn.establish("mn")
        (sa,) = await pair.ha.list_sas()
        assert [ts for child in sa.children for ts in child.remote_ts] == ["203.0.113.130/32"]


async def test_no_common_algorithm() -> None:
    common = deployment()
    other = Deployment(
        common.home_agent,
        common.mobile_nodes,
        IkeSettings(ike_proposals=("aes256gcm16-prfsha384-ecp384",)),
    )
    async with Pair(mobile_node=other, home_agent=common) as pair:
        with pytest.raises(NoProposalChosenError):
            await pair.mn.establish("mn")


async def test_blocked_port_4500_is_noticed_in_time() -> None:
    async with Pair(network="b") as pair:
        pair.topology.exec(
            "core", "iptables-legacy", "-A", "FORWARD", "-p", "udp", "--dport", "4500", "-j", "DROP"
        )
        loop = asyncio.get_running_loop()
        begin = loop.time()
        with pytest.raises(PeerUnreachableError, match="giving up") as caught:
            await pair.mn.establish("mn")
        assert loop.time() - begin < 20
        assert "4500" in caught.value.hint


async def test_a_new_path_that_drops_ike_is_named() -> None:
    async with Pair(network="a") as pair:
        await pair.mn.establish("mn")
        pair.topology.exec(
            "core", "iptables-legacy", "-A", "FORWARD", "-i", "netb", "-p", "udp", "-j", "DROP"
        )
        pair.topology.prefer("b")
        with pytest.raises(IkeTimeoutError, match="busy with IKE_MOBIKE"):
            await pair.mn.wait_moved("mn", local=IPv4Address(CARE_OF_B), timeout=2)


async def test_a_killed_charon_names_its_log_and_its_peer_notices() -> None:
    async with Pair(network="b") as pair, pair.mn.events() as events:
        await pair.mn.establish("mn")
        loop = asyncio.get_running_loop()
        begin = loop.time()
        pid = pair.charons["ha"].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        error = await pair.charons["ha"].wait_died()
        assert "SIGKILL" in error.message
        assert "charon.log" in error.hint
        with pytest.raises(CharonDiedError):
            await pair.ha.list_sas()
        async with asyncio.timeout(20):
            async for event in events:
                if isinstance(event, vici_types.IkeUpdown) and not event.up:
                    break
        assert loop.time() - begin < 20
        assert pair.states("mn") == set()


async def test_event_stream_ends_with_an_error_when_charon_dies() -> None:
    async with Pair() as pair, pair.mn.events() as events:
        pid = pair.charons["mn"].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(CharonDiedError):
            await asyncio.wait_for(_drain(events), 5)


async def test_bad_configuration_of_charon_is_an_error_with_its_words() -> None:
    async with Pair() as pair:
        pair.files["mn"].swanctl_conf.write_text(
            "connections { mn { children { data { mode = sideways } } } }\n"
        )
        with pytest.raises(IkeError, match=r"swanctl --load-all failed: .*invalid value for: mode"):
            await pair.mn.load_all(pair.files["mn"])


async def test_exported_keys_decrypt_ike_in_tshark_and_no_secret_is_in_the_log() -> None:
    common = deployment()
    async with Pair(network="b", mobile_node=common, home_agent=common, export_keys=True) as pair:
        capture = pair.directory / "ha.pcap"
        with subprocess.Popen(
            [
                *pair.topology.prefix("core"),
                *("tcpdump", "-i", "toha", "-U", "-w", str(capture), "udp port 4500"),
            ],
            stderr=subprocess.PIPE,
            text=True,
        ) as tcpdump:
            assert tcpdump.stderr is not None
            assert "listening" in tcpdump.stderr.readline()
            await pair.mn.establish("mn")
            old, new = await pair.mn.probe_exchange("mn")
            await pair.mn.rekey("mn", "data")  # under the keys of the new IKE_SA
            await pair.mn.terminate("mn")
            await asyncio.to_thread(_wait_for_packets, capture, 14)
            tcpdump.terminate()
        for node in ("mn", "ha"):
            key_log = pair.files[node].key_log
            assert key_log is not None
            assert key_log.stat().st_mode & 0o777 == 0o600
            keys = keylog.parse(key_log.read_text().splitlines())
            assert {(k.initiator_spi, k.responder_spi) for k in keys} == {
                (sa.initiator_spi, sa.responder_spi) for sa in (old, new)
            }
            profile = pair.directory / f"wireshark-{node}"
            profile.mkdir()
            (profile / "ikev2_decryption_table").write_text(
                "".join(wireshark.ikev2_line(k) + "\n" for k in keys)
            )
            decoded = subprocess.run(
                ["tshark", "-r", str(capture), "-Y", "isakmp", "-T", "fields",
                 "-e", "isakmp.exchangetype", "-e", "isakmp.ts.start_ipv6", "-e",
                 "isakmp.notify.msgtype", "-E", "separator=;"],
                env={**os.environ, "WIRESHARK_CONFIG_DIR": str(profile)},
                capture_output=True, text=True, check=True,
            ).stdout.splitlines()  # fmt: skip
            child_exchanges = [line for line in decoded if line.startswith("36;")]
            # signalling, the IKE_SA, data; a request and a response each
            assert len(child_exchanges) == 6
            with_addresses = [line for line in child_exchanges if HOME_ADDRESS in line]
            assert len(with_addresses) == 4
            secrets = {k.sk_ei.hex()[:16] for k in keys}
            log = pair.files[node].log_file.read_text().replace(" ", "").lower()
            assert not any(secret in log for secret in secrets)


async def _drain(events: AsyncIterator[vici_types.IkeEvent]) -> None:
    async for _ in events:
        pass


def _wait_for_packets(capture: Path, count: int) -> None:
    for _ in range(200):
        out = subprocess.run(
            ["tcpdump", "-r", str(capture)], capture_output=True, text=True, check=False
        ).stdout
        if len(out.splitlines()) >= count:
            return
    raise AssertionError(f"fewer than {count} packets captured:\n{out}")


async def test_two_charons_share_a_file_system_and_one_can_be_restarted() -> None:
    async with Pair(network="b") as pair:
        await pair.mn.establish("mn")
        await pair.charons["mn"].stop()
        assert pair.states("ha") == set()  # SIGTERM deletes the SAs at both ends
        restarted = Charon(pair.files["mn"], pair.topology.prefix("mn"))
        await restarted.start()
        try:
            await restarted.wait_ready()
            await restarted.driver.load_all(restarted.files)
            await restarted.driver.establish("mn")
        finally:
            await restarted.stop()
