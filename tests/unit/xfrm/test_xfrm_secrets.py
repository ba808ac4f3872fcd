"""Keys never show: not in reprs, errors, messages or pickles."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
from xfrm_samples import MEANINGS, TRANSPORT_STATE, TUNNEL_STATE

from dsmip_ipsec.xfrm import Algorithm, Key, Result, State, XfrmEncodeError, requests
from dsmip_ipsec.xfrm.constants import Message
from dsmip_ipsec.xfrm.exchange import Exchange
from dsmip_ipsec.xfrm.messages import CLASSES
from dsmip_ipsec.xfrm.notifications import StateAdded

SECRET = b"Zq7xWk29Lp4TvB8s"


def _state() -> State:
    state = MEANINGS[TRANSPORT_STATE]
    assert isinstance(state, State)
    return replace(state, encryption=Algorithm("cbc(aes)", Key(SECRET)), extra=((60, SECRET),))


def _shows(text: str) -> bool:
    return any(
        form in text
        for form in ("Zq7xWk", SECRET.hex(), SECRET.hex(":"), str(list(SECRET))[1:-1], "5a71")
    )


def test_reprs_do_not_show_keys() -> None:
    state = _state()
    request = requests.add_state(state)
    shown = repr((state, request, Result(request), StateAdded(state), state.encryption))
    assert not _shows(shown)
    assert _shows(repr(SECRET))  # the check itself can see


def test_nlmsg_reprs_do_not_show_keys() -> None:
    kind = CLASSES[Message.NEWSA][0]
    message = kind(Exchange([requests.add_state(replace(_state(), extra=()))], 1).datagram)
    message.decode()
    # rendering decodes the attributes; what is decoded then is what must not show
    assert not _shows(repr(message["attrs"]) + repr(message) + str(message))
    assert not _shows(repr([slot.nla for slot in message["attrs"]]))
    assert message.get_attr("XFRMA_ALG_CRYPT")["alg_key"] == Key(SECRET)
    written = kind()
    value = {"alg_name": "cbc(aes)", "alg_key": SECRET}
    written["attrs"] = [("XFRMA_ALG_CRYPT", value)]
    written.encode()
    assert SECRET in bytes(written.data)
    assert not _shows(repr(written["attrs"]) + repr(written))


def test_errors_do_not_show_keys() -> None:
    with pytest.raises(XfrmEncodeError) as caught:
        requests.add_state(replace(_state(), reqid=1 << 40))
    assert not _shows(repr(caught.value) + str(caught.value))


def test_keys_are_values_and_do_not_pickle() -> None:
    key = Key(SECRET)
    assert key == Key(SECRET)
    assert hash(key) == hash(Key(SECRET))
    assert key != Key(SECRET[:-1])
    assert key != SECRET
    assert len(key) == 16
    assert key.reveal() == SECRET
    with pytest.raises(TypeError):
        pickle.dumps(MEANINGS[TUNNEL_STATE])
