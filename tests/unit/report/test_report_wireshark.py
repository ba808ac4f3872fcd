"""The key export, judged by tshark: it decodes what `cryptography` and scapy encrypted."""

from __future__ import annotations

import stat
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
import report_packets as packets

from dsmip_ipsec.errors import LabError
from dsmip_ipsec.ike.keylog import IkeKeys
from dsmip_ipsec.ipsec.model import (
    Algorithm,
    Encapsulation,
    Mode,
    SecretKey,
    SecurityAssociation,
)
from dsmip_ipsec.report.wireshark import (
    SaKeys,
    UnsupportedByWireshark,
    esp_sa_lines,
    export,
    ikev2_line,
)

SPI = 0xC0FFEE01
KEY = bytes(range(0x40, 0x80))
ICV_GOOD = "esp.icv_good"
BU_FIELDS = ("mip6.bu.seqnr", "mip6.ipv4ha.ha", "mip6.ipv4coa.addr", ICV_GOOD)
BU_VALUES = {
    "mip6.bu.seqnr": ["7"],
    "mip6.ipv4ha.ha": ["198.51.100.10"],
    "mip6.ipv4coa.addr": ["10.1.0.2"],
    ICV_GOOD: ["1"],
}
# What a stranger types; with the exported preferences, nothing of it is needed.
LONG_FORM = ("-d", "udp.port==4191,ip", "-o", "esp.enable_encryption_decode:TRUE")


def sa_gcm(spi: int = SPI, *, bits: int = 128, icv: int = 16) -> SaKeys:
    return SaKeys(
        spi=spi,
        source=ip_address(packets.HOME_ADDRESS),
        destination=ip_address(packets.HOME_AGENT),
        encryption="rfc4106(gcm(aes))",
        encryption_key=KEY[: bits // 8 + 4],
        icv_bits=8 * icv,
        mode="transport",
    )


def sa_hmac(encryption: str, mac: str, octets: int, icv: int) -> SaKeys:
    return replace(
        sa_gcm(),
        encryption=encryption,
        encryption_key=b"" if "null" in encryption else KEY[:32],
        icv_bits=8 * icv,
        authentication=f"hmac({mac})",
        authentication_key=KEY[:octets],
    )


@pytest.mark.parametrize("bits", [128, 192, 256])
@pytest.mark.parametrize("icv", [8, 12, 16])
def test_binding_update_under_aes_gcm(tmp_path: Path, bits: int, icv: int) -> None:
    sa = sa_gcm(bits=bits, icv=icv)
    esp = packets.esp_gcm(sa.encryption_key, SPI, packets.binding_update(), 135, icv=icv)
    capture = packets.write_capture(tmp_path / "c.pcap", packets.signalling(esp))
    export(tmp_path / "wireshark", [sa])
    (packet,), complaints = packets.tshark(tmp_path / "wireshark", capture, *BU_FIELDS)
    assert complaints == ""
    assert packet.pop("frame.protocols")[0].endswith("ip:udp:ip:ipv6:esp:mipv6")
    assert packet == BU_VALUES


def test_long_form_decodes_too(tmp_path: Path) -> None:
    sa = sa_gcm()
    esp = packets.esp_gcm(sa.encryption_key, SPI, packets.binding_update(), 135)
    capture = packets.write_capture(tmp_path / "c.pcap", packets.signalling(esp))
    export(tmp_path / "wireshark", [sa])
    for name in ("preferences", "decode_as_entries"):
        (tmp_path / "wireshark" / name).unlink()
    (packet,), complaints = packets.tshark(
        tmp_path / "wireshark", capture, "mip6.ipv4coa.addr", options=LONG_FORM
    )
    assert (packet["mip6.ipv4coa.addr"], complaints) == (["10.1.0.2"], "")


@pytest.mark.parametrize(
    ("mac", "octets", "icv"),
    [("sha1", 20, 12), ("sha256", 32, 16), ("sha384", 48, 24), ("sha512", 64, 32)],
)
@pytest.mark.parametrize("encryption", ["cbc(aes)", "ecb(cipher_null)"])
def test_binding_update_under_hmac(
    tmp_path: Path, encryption: str, mac: str, octets: int, icv: int
) -> None:
    sa = sa_hmac(encryption, mac, octets, icv)
    esp = packets.esp_hmac(
        *(sa.encryption_key or None, mac, sa.authentication_key, SPI),
        *(packets.binding_update(), 135),
        icv=icv,
    )
    capture = packets.write_capture(tmp_path / "c.pcap", packets.signalling(esp))
    export(tmp_path / "wireshark", [sa])
    (packet,), complaints = packets.tshark(tmp_path / "wireshark", capture, *BU_FIELDS)
    del packet["frame.protocols"]
    assert (packet, complaints) == (BU_VALUES, "")


def test_unknown_mac_of_known_length_is_decoded_unchecked(tmp_path: Path) -> None:
    """hmac(sha256) cut to 96 bits, as Linux did before RFC 4868."""
    sa = sa_hmac("cbc(aes)", "sha256", 32, 12)
    esp = packets.esp_hmac(
        *(sa.encryption_key, "sha256", sa.authentication_key, SPI),
        *(packets.binding_update(), 135),
        icv=12,
    )
    capture = packets.write_capture(tmp_path / "c.pcap", packets.signalling(esp))
    export(tmp_path / "wireshark", [sa])
    (packet,), complaints = packets.tshark(tmp_path / "wireshark", capture, "mip6.ipv4coa.addr")
    assert (packet["mip6.ipv4coa.addr"], complaints) == (["10.1.0.2"], "")


def test_data_in_udp_4500_from_where_the_nat_took_it(tmp_path: Path) -> None:
    """The SA has the mobile node's private address; the capture at the home agent doesn't."""
    sa = replace(
        sa_gcm(),
        source=ip_address("10.1.0.2"),
        destination=ip_address(packets.HOME_AGENT_IPV4),
        mode="tunnel",
    )
    esp = packets.esp_gcm(sa.encryption_key, SPI, packets.inner_packet(), 41)
    capture = packets.write_capture(tmp_path / "c.pcap", packets.udp_4500(esp))
    export(tmp_path / "wireshark", [sa])
    (packet,), complaints = packets.tshark(
        tmp_path / "wireshark", capture, "ipv6.dst", "udp.dstport"
    )
    assert complaints == ""
    assert packet["ipv6.dst"] == ["2001:db8:2::1"]
    assert packet["udp.dstport"] == ["4500", "9"]


def test_same_sa_behind_a_home_address_option(tmp_path: Path) -> None:
    sa = sa_gcm()
    esp = packets.esp_gcm(sa.encryption_key, SPI, packets.binding_update(), 135)
    capture = packets.write_capture(tmp_path / "c.pcap", packets.native(esp))
    export(tmp_path / "wireshark", [sa])
    (packet,), _ = packets.tshark(tmp_path / "wireshark", capture, "mip6.ipv4coa.addr")
    assert packet["mip6.ipv4coa.addr"] == ["10.1.0.2"]


def test_one_spi_of_two_receivers_keeps_its_keys_apart(tmp_path: Path) -> None:
    """Each receiver chooses its SPIs, so two may choose one. Then addresses must tell."""
    signalling = sa_gcm()
    data = replace(
        signalling,
        encryption_key=KEY[::-1][:20],
        source=ip_address(packets.NAT_ADDRESS),
        destination=ip_address(packets.HOME_AGENT_IPV4),
    )
    capture = packets.write_capture(
        tmp_path / "c.pcap",
        packets.signalling(
            packets.esp_gcm(signalling.encryption_key, SPI, packets.binding_update(), 135)
        ),
        packets.udp_4500(packets.esp_gcm(data.encryption_key, SPI, packets.inner_packet(), 41)),
        packets.native(
            packets.esp_gcm(signalling.encryption_key, SPI, packets.binding_update(), 135)
        ),
    )
    done = export(tmp_path / "wireshark", [data, signalling])
    three, _ = packets.tshark(
        tmp_path / "wireshark", capture, "mip6.ipv4coa.addr", "ipv6.dst", ICV_GOOD
    )
    assert [packet[ICV_GOOD] for packet in three] == [["1"], ["1"], ["1"]]
    assert three[1]["ipv6.dst"] == ["2001:db8:2::1"]
    assert done.esp_sas == 2
    # From elsewhere, either key could be the right one: neither may be tried.
    assert '"*"' not in (tmp_path / "wireshark" / "esp_sa").read_text()


def test_wrong_key_is_visible(tmp_path: Path) -> None:
    """The ICV check is on, so a wrong key can't pass for a decoded packet."""
    sa = sa_gcm()
    esp = packets.esp_gcm(KEY[::-1][:20], SPI, packets.binding_update(), 135)
    capture = packets.write_capture(tmp_path / "c.pcap", packets.signalling(esp))
    export(tmp_path / "wireshark", [sa])
    (packet,), _ = packets.tshark(tmp_path / "wireshark", capture, *BU_FIELDS)
    assert packet.get(ICV_GOOD) != ["1"]
    assert "mip6.bu.seqnr" not in packet


def test_handover_repeats_an_sa_without_repeating_lines(tmp_path: Path) -> None:
    before = replace(sa_gcm(), source=ip_address("10.1.0.2"), destination=ip_address("203.0.113.1"))
    after = replace(before, source=ip_address("198.51.100.2"), encapsulation=(4500, 4500))
    done = export(tmp_path, [before, after, before, replace(before, note="again")])
    lines = [line for line in (tmp_path / "esp_sa").read_text().splitlines() if line[0] != "#"]
    assert len(lines) == len(set(lines)) == 4  # two places, two families anywhere
    assert done.esp_sas == 1


def ike_gcm_keys(bits: int = 128, icv: int = 16) -> IkeKeys:
    return IkeKeys(
        *("mn", 1, *packets.IKE_SPIS),
        proposal=(f"AES_GCM_{icv}_{bits}", "PRF_HMAC_SHA2_256", "ECP_256"),
        sk_ei=KEY[: bits // 8 + 4],
        sk_er=KEY[::-1][: bits // 8 + 4],
    )


IKE_FIELDS = ("isakmp.notify.msgtype", "_ws.expert.message")


@pytest.mark.parametrize("bits", [128, 192, 256])
@pytest.mark.parametrize("icv", [8, 12, 16])
def test_ike_under_aes_gcm(tmp_path: Path, bits: int, icv: int) -> None:
    ike = ike_gcm_keys(bits, icv)
    message = packets.ike_gcm(ike.sk_ei, icv=icv)
    capture = packets.write_capture(tmp_path / "c.pcap", packets.udp_4500(bytes(4) + message))
    export(tmp_path / "wireshark", [], [ike])
    (packet,), complaints = packets.tshark(tmp_path / "wireshark", capture, *IKE_FIELDS)
    del packet["frame.protocols"]
    assert (packet, complaints) == ({"isakmp.notify.msgtype": ["16400"]}, "")


@pytest.mark.parametrize(
    ("integrity", "mac", "octets", "icv"),
    [
        ("HMAC_SHA1_96", "sha1", 20, 12),
        ("HMAC_SHA2_256_128", "sha256", 32, 16),
        ("HMAC_SHA2_384_192", "sha384", 48, 24),
        ("HMAC_SHA2_512_256", "sha512", 64, 32),
    ],
)
@pytest.mark.parametrize("bits", [128, 192, 256])
def test_ike_under_aes_cbc(
    tmp_path: Path, bits: int, integrity: str, mac: str, octets: int, icv: int
) -> None:
    ike = IkeKeys(
        *("mn", 1, *packets.IKE_SPIS),
        proposal=(f"AES_CBC_{bits}", integrity, "PRF_HMAC_SHA2_256", "ECP_256"),
        sk_ei=KEY[: bits // 8],
        sk_er=KEY[::-1][: bits // 8],
        sk_ai=KEY[:octets],
        sk_ar=KEY[::-1][:octets],
    )
    message = packets.ike_cbc(ike.sk_ei, mac, ike.sk_ai, icv=icv)
    capture = packets.write_capture(tmp_path / "c.pcap", packets.udp_4500(bytes(4) + message))
    export(tmp_path / "wireshark", [], [ike])
    (packet,), complaints = packets.tshark(tmp_path / "wireshark", capture, *IKE_FIELDS)
    del packet["frame.protocols"]
    assert (packet, complaints) == ({"isakmp.notify.msgtype": ["16400"]}, "")


@pytest.mark.parametrize(
    "sa",
    [
        replace(sa_gcm(), encryption="rfc7539esp(chacha20,poly1305)"),
        replace(sa_gcm(), icv_bits=0),
        replace(sa_gcm(), encryption_key=KEY[:16]),
        replace(sa_gcm(), encryption="cbc(aes)", encryption_key=KEY[:20]),
        replace(sa_hmac("cbc(aes)", "sha256", 32, 16), icv_bits=40),
        replace(sa_gcm(), spi=0),
        replace(sa_gcm(), spi=1 << 32),
    ],
)
def test_undecodable_esp_is_skipped_and_named(tmp_path: Path, sa: SaKeys) -> None:
    with pytest.raises(UnsupportedByWireshark) as caught:
        esp_sa_lines(sa)
    assert caught.value.hint
    good = sa_gcm(0xBEEF)
    done = export(tmp_path / "wireshark", [sa, good])
    assert [error.what for error in done.skipped] == [sa.name]
    assert done.esp_sas == 1
    # tshark drops a table from its first bad line on: the good SA after it must survive.
    esp = packets.esp_gcm(good.encryption_key, good.spi, packets.binding_update(), 135)
    capture = packets.write_capture(tmp_path / "c.pcap", packets.signalling(esp))
    (packet,), complaints = packets.tshark(tmp_path / "wireshark", capture, "mip6.ipv4coa.addr")
    assert (packet["mip6.ipv4coa.addr"], complaints) == (["10.1.0.2"], "")


@pytest.mark.parametrize(
    "ike",
    [
        replace(ike_gcm_keys(), proposal=("CHACHA20_POLY1305_256",)),
        replace(ike_gcm_keys(), proposal=()),
        replace(ike_gcm_keys(), sk_ei=KEY[:16]),
        replace(ike_gcm_keys(), sk_er=KEY[:36]),
        replace(ike_gcm_keys(), proposal=("AES_CBC_128",), sk_ei=KEY[:16], sk_er=KEY[:16]),
        replace(
            ike_gcm_keys(),
            proposal=("AES_CBC_128", "HMAC_SHA1_96"),
            sk_ei=KEY[:16],
            sk_er=KEY[:16],
            sk_ai=KEY[:20],
            sk_ar=KEY[:16],
        ),
        replace(ike_gcm_keys(), responder_spi=0),
        replace(ike_gcm_keys(), initiator_spi=1 << 64),
    ],
)
def test_undecodable_ike_is_skipped_and_named(tmp_path: Path, ike: IkeKeys) -> None:
    with pytest.raises(UnsupportedByWireshark):
        ikev2_line(ike)
    good = ike_gcm_keys()
    done = export(tmp_path / "wireshark", [], [ike, good])
    (skipped,) = done.skipped
    assert skipped.what.startswith("IKE_SA mn[1] ")
    assert done.ike_sas == 1
    message = packets.ike_gcm(good.sk_ei)
    capture = packets.write_capture(tmp_path / "c.pcap", packets.udp_4500(bytes(4) + message))
    (packet,), complaints = packets.tshark(tmp_path / "wireshark", capture, *IKE_FIELDS)
    assert (packet["isakmp.notify.msgtype"], complaints) == (["16400"], "")


def test_note_cannot_break_out_of_its_comment(tmp_path: Path) -> None:
    sa = replace(sa_gcm(), note='bad\n"IPv4","*","*","0x1"\r"')
    export(tmp_path / "wireshark", [sa])
    esp = packets.esp_gcm(sa.encryption_key, SPI, packets.binding_update(), 135)
    capture = packets.write_capture(tmp_path / "c.pcap", packets.signalling(esp))
    (packet,), complaints = packets.tshark(tmp_path / "wireshark", capture, "mip6.ipv4coa.addr")
    assert (packet["mip6.ipv4coa.addr"], complaints) == (["10.1.0.2"], "")


def test_files_are_private(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "wireshark"
    export(directory, [sa_gcm()], [ike_gcm_keys()])
    (directory / "esp_sa").chmod(0o644)
    export(directory, [sa_gcm()], [ike_gcm_keys()])
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert modes == dict.fromkeys(
        ("esp_sa", "ikev2_decryption_table", "preferences", "decode_as_entries"), 0o600
    )


def test_unwritable_directory_is_a_lab_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LabError) as caught:
        export(tmp_path / "file" / "wireshark", [sa_gcm()])
    assert caught.value.hint


def test_sa_of_the_model_is_exported_with_its_keys() -> None:
    aead = SecurityAssociation(
        spi=SPI,
        source=ip_address(packets.HOME_ADDRESS),
        destination=ip_address(packets.HOME_AGENT),
        mode=Mode.TUNNEL,
        reqid=1,
        aead=Algorithm("rfc4106(gcm(aes))", SecretKey(KEY[:20]), 128),
        encapsulation=Encapsulation(4500, 41011),
    )
    two = replace(
        aead,
        aead=None,
        encryption=Algorithm("cbc(aes)", SecretKey(KEY[:16])),
        authentication=Algorithm("hmac(sha256)", SecretKey(KEY[:32]), 128),
        encapsulation=None,
    )
    keys = SaKeys.of(aead, note="data")
    assert keys == replace(sa_gcm(), mode="tunnel", encapsulation=(4500, 41011), note="data")
    assert keys.name.endswith("tunnel UDP 4500 -> 41011 data")
    assert SaKeys.of(two) == replace(
        sa_hmac("cbc(aes)", "sha256", 32, 16), encryption_key=KEY[:16], mode="tunnel"
    )


def test_keys_never_print() -> None:
    secret = KEY.hex()
    sa = sa_hmac("cbc(aes)", "sha256", 32, 16)
    shown = [repr(sa), sa.name]
    for broken in (replace(sa, encryption_key=KEY), replace(sa, encryption="x")):
        with pytest.raises(UnsupportedByWireshark) as caught:
            esp_sa_lines(broken)
        shown += [repr(caught.value), str(caught.value), caught.value.hint]
    with pytest.raises(UnsupportedByWireshark) as caught:
        ikev2_line(replace(ike_gcm_keys(), sk_ei=KEY))
    shown += [repr(caught.value), str(caught.value), caught.value.hint]
    for text in shown:
        assert secret[:8] not in text
        assert repr(KEY)[2:10] not in text
