"""charon's key log. That the result is right, tshark says in tests/kernel/test_ike_charon.py."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dsmip_ipsec.ike.keylog import IkeKeys, parse

# As charon 5.9.8 prints it; the responder's order, with another thread in between.
LOG = """\
06[CFG] <1> selected proposal: IKE:AES_GCM_16_128/PRF_HMAC_SHA2_256/ECP_256
06[MGR] <1> checkin IKEv2 SA (unnamed)[1] with SPIs 941eabc62300ce38_i 3b40655668d4347e_r
07[CFG] <2> selected proposal: IKE:AES_CBC_128/HMAC_SHA2_256_128/PRF_HMAC_SHA2_256/ECP_256
08[IKE] <1> Sk_d secret => 32 bytes @ 0x6400bed0
08[IKE] <1>    0: 2E 6E A0 82 38 A1 F6 FB FE 5B 48 E2 2B B5 3E 36  .n..8....[H.+.>6
08[IKE] <1>   16: 8A 00 DB F1 58 7B 28 E6 D0 3A B6 38 EC EA 54 B1  ....X{(..:.8..T.
08[IKE] <1> Sk_ei secret => 20 bytes @ 0x6400ba70
08[IKE] <1>    0: B9 1C 6B 51 B5 80 4D 3A D9 12 FD 87 5A 79 CB D4  ..kQ..M:....Zy..
07[IKE] <2> Sk_ai secret => 4 bytes @ 0x1
07[IKE] <2>    0: 01 02 03 04                                      ....
08[IKE] <1>   16: 68 24 95 F9                                      h$..
08[IKE] <1> Sk_er secret => 20 bytes @ 0x6400ba84
08[IKE] <1>    0: B9 04 96 8A CD 7F 16 B0 AF 02 96 71 3E 44 B0 E2  ...........q>D..
07[IKE] <2> Sk_ar secret => 4 bytes @ 0x1
07[IKE] <2>    0: 05 06 07 08                                      ....
07[IKE] <2> Sk_ei secret => 2 bytes @ 0x1
07[IKE] <2>    0: 0A 0B                                            ..
07[IKE] <2> Sk_er secret => 2 bytes @ 0x1
07[IKE] <2>    0: 0C 0D                                            ..
08[IKE] <1>   16: B8 00 D9 F0                                      ....
08[MGR] <mn|1> checkin IKEv2 SA mn[1] with SPIs 941eabc62300ce38_i 3b40655668d4347e_r
07[MGR] <b|2> checkin IKEv2 SA b[2] with SPIs 00000000000000aa_i 0000000000000000_r
07[MGR] <b|2> checkin IKEv2 SA b[2] with SPIs 00000000000000aa_i 00000000000000bb_r
08[MGR] <mn|1> checkin IKEv2 SA mn[1] with SPIs 941eabc62300ce38_i 3b40655668d4347e_r
"""


def test_keys_of_two_threads() -> None:
    first, second = parse(LOG.splitlines())
    assert first == IkeKeys(
        name="mn",
        uniqueid=1,
        initiator_spi=0x941EABC62300CE38,
        responder_spi=0x3B40655668D4347E,
        proposal=("AES_GCM_16_128", "PRF_HMAC_SHA2_256", "ECP_256"),
        sk_ei=bytes.fromhex("b91c6b51b5804d3ad912fd875a79cbd4682495f9"),
        sk_er=bytes.fromhex("b904968acd7f16b0af0296713e44b0e2b800d9f0"),
    )
    assert second.sk_ai == bytes([1, 2, 3, 4])
    assert second.integrity == "HMAC_SHA2_256_128"
    assert first.integrity == ""


def test_keys_never_show() -> None:
    keys = IkeKeys("mn", 1, 1, 2, ("CHACHA20_POLY1305", "PRF_HMAC_SHA2_256"), b"ABCD", b"EFGH")
    assert "41424344" not in repr(keys)
    assert "ABCD" not in repr(keys)


def test_half_a_key_is_none() -> None:
    lines = LOG.splitlines()
    cut = [line for line in lines if "68 24 95 F9" not in line]
    assert [keys.name for keys in parse(cut)] == ["b"]
    for end in range(len(lines)):
        assert len(parse(lines[:end])) <= 2


@given(st.lists(st.sampled_from(LOG.splitlines()) | st.text(max_size=60)))
def test_no_input_raises(lines: list[str]) -> None:
    for keys in parse(lines):
        assert keys.responder_spi
