"""Desired state and plans, read side by side with RFC 5555 §5.2."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Network, ip_network

import pytest

from dsmip_ipsec.ipsec.desired import PRIORITY_BAND, DesiredState, desired
from dsmip_ipsec.ipsec.model import (
    Action,
    Algorithm,
    Direction,
    Encapsulation,
    ExtensionState,
    MobilityHeaderType,
    Mode,
    Policy,
    SecretKey,
    SecurityAssociation,
    Selector,
)
from dsmip_ipsec.ipsec.peering import Peering, Reqids, Role
from dsmip_ipsec.ipsec.plan import Operation, Verb, plan
from dsmip_ipsec.mobility.types import Binding, OuterAddress

HOME = IPv6Address("2001:db8:100::100")
HOME4 = IPv4Address("203.0.113.200")
AGENT = IPv6Address("2001:db8:100::1")
AGENT4 = IPv4Address("203.0.113.2")
PRIVATE = IPv4Address("10.0.0.100")
PUBLIC = IPv4Address("198.51.100.100")
NAT = IPv4Address("192.0.2.2")
IDS = Reqids(signalling=1, mirror=2, data=3)
AEAD = Algorithm("rfc4106(gcm(aes))", SecretKey(bytes(range(20))), 128)

MN = Peering(Role.MOBILE_NODE, HOME, HOME4, AGENT, AGENT4, IDS)
HA = replace(MN, role=Role.HOME_AGENT)


def association(
    spi: int,
    source: IPv4Address | IPv6Address,
    destination: IPv4Address | IPv6Address,
    reqid: int,
    mode: Mode = Mode.TUNNEL,
    encapsulation: Encapsulation | None = None,
) -> SecurityAssociation:
    return SecurityAssociation(
        spi, source, destination, mode, reqid, aead=AEAD, encapsulation=encapsulation
    )


def negotiated(mobile: IPv4Address, *, nat: bool) -> list[SecurityAssociation]:
    """What charon installs at one end that knows the mobile node as ``mobile``."""
    encapsulation = Encapsulation(4500, 4500) if nat else None
    return [
        association(0x11, mobile, AGENT4, IDS.signalling, Mode.TUNNEL, encapsulation),
        association(0x12, AGENT4, mobile, IDS.signalling, Mode.TUNNEL, encapsulation),
        association(0x21, mobile, AGENT4, IDS.data, Mode.TUNNEL, encapsulation),
        association(0x22, AGENT4, mobile, IDS.data, Mode.TUNNEL, encapsulation),
    ]


def binding(care_of_address: IPv4Address, outer: IPv4Address, *, nat: bool) -> Binding:
    return Binding(
        home_address=HOME,
        home_agent=AGENT,
        care_of_address=care_of_address,
        sequence=1,
        lifetime=600,
        registered_at=0,
        expires_at=600,
        home_agent_ipv4=AGENT4,
        ipv4_home_address=IPv4Interface(f"{HOME4}/32"),
        outer=OuterAddress(outer, 4191),
        nat_detected=nat,
        udp_encapsulation=nat,
    )


BOUND = binding(PRIVATE, NAT, nat=True)


def find(state: DesiredState, direction: Direction, selector: Selector) -> Policy:
    found = [p for p in state.policies if p.key == (direction, selector)]
    assert len(found) == 1, f"{len(found)} policies for {direction} {selector}"
    return found[0]


def payload(source: object, destination: object) -> Selector:
    return Selector(ip_network(str(source)), ip_network(str(destination)))


@pytest.mark.rfc("5555-5-2", "5555-5.2.1-1", "6275-9.3.2-5", "6275-11.7.1-16")
def test_signalling_spd_entries_of_rfc5555_5_2_1() -> None:
    """MN: BU out, BA in; HA: BU in, BA out; proto MH, ESP transport between HoA and HA."""
    bu, ba = MobilityHeaderType.BINDING_UPDATE, MobilityHeaderType.BINDING_ACKNOWLEDGEMENT
    for peering, mobile, here, there, sent in (
        (MN, PRIVATE, HOME, AGENT, bu),
        (HA, NAT, AGENT, HOME, ba),
    ):
        state = desired(
            peering, active=True, binding=BOUND, negotiated=negotiated(mobile, nat=True)
        )
        for direction, source, destination, message in (
            (Direction.OUT, here, there, sent),
            (Direction.IN, there, here, None),
        ):
            selector = Selector(ip_network(source), ip_network(destination), 135, message)
            policy = find(state, direction, selector)
            assert policy.action is Action.PROTECT
            assert policy.template is not None
            assert policy.template.mode is Mode.TRANSPORT
            assert (policy.template.source, policy.template.destination) == (source, destination)
            assert policy.template.reqid == IDS.mirror


@pytest.mark.parametrize(("peering", "mobile"), [(MN, PRIVATE), (HA, NAT)])
def test_behind_a_nat_the_tunnel_sa_is_mirrored_into_transport_mode(
    peering: Peering, mobile: IPv4Address
) -> None:
    state = desired(peering, active=True, binding=None, negotiated=negotiated(mobile, nat=True))
    to_agent, to_home = sorted(state.associations, key=lambda sa: sa.spi)
    assert (to_agent.spi, to_agent.source, to_agent.destination) == (0x11, HOME, AGENT)
    assert (to_home.spi, to_home.source, to_home.destination) == (0x12, AGENT, HOME)
    for mirror in (to_agent, to_home):
        assert mirror.mode is Mode.TRANSPORT
        assert mirror.encapsulation is None
        assert mirror.aead == AEAD
        assert mirror.reqid == IDS.mirror
        assert mirror.selector is not None
        assert mirror.selector.protocol == 135


def test_a_negotiated_transport_sa_needs_no_mirror() -> None:
    native = association(0x11, HOME, AGENT, IDS.signalling, Mode.TRANSPORT)
    state = desired(MN, active=True, binding=None, negotiated=[native])
    assert state.associations == ()
    bu = Selector(ip_network(HOME), ip_network(AGENT), 135, MobilityHeaderType.BINDING_UPDATE)
    template = find(state, Direction.OUT, bu).template
    assert template is not None
    assert template.reqid == IDS.signalling


@pytest.mark.parametrize("peering", [MN, HA])
@pytest.mark.parametrize("newest", [Mode.TRANSPORT, Mode.TUNNEL])
def test_of_both_kinds_of_signalling_sas_the_newest_are_used(
    peering: Peering, newest: Mode
) -> None:
    """After a move between families the old ones may be this end's alone."""
    transport = [
        association(0x31, HOME, AGENT, IDS.signalling, Mode.TRANSPORT),
        association(0x32, AGENT, HOME, IDS.signalling, Mode.TRANSPORT),
    ]
    tunnel = [sa for sa in negotiated(NAT, nat=True) if sa.reqid == IDS.signalling]
    both = [*transport, *tunnel] if newest is Mode.TRANSPORT else [*tunnel, *transport]
    state = desired(peering, active=True, binding=None, negotiated=both)
    assert {sa.spi for sa in state.associations} == {0x11, 0x12}
    reqids = {
        policy.template.reqid
        for policy in state.policies
        if policy.template is not None and policy.template.mode is Mode.TRANSPORT
    }
    assert reqids == {IDS.signalling if newest is Mode.TRANSPORT else IDS.mirror}


@pytest.mark.rfc("5555-5.2.2-1", "6275-10.4.2-1", "6275-10.4.2-8")
def test_payload_spd_entries_of_rfc5555_5_2_2_follow_the_sa() -> None:
    """Tunnel mode, both families, addresses of the outbound SA; inbound wildcards."""
    state = desired(HA, active=True, binding=BOUND, negotiated=negotiated(NAT, nat=True))
    for home, anywhere in ((HOME, "::/0"), (HOME4, "0.0.0.0/0")):
        out = find(state, Direction.OUT, payload(anywhere, home)).template
        assert out is not None
        assert (out.mode, out.source, out.destination) == (Mode.TUNNEL, AGENT4, NAT)
        for direction in (Direction.IN, Direction.FWD):
            template = find(state, direction, payload(home, anywhere)).template
            assert template is not None
            assert template.source.is_unspecified
            assert template.reqid == IDS.data


def test_payload_between_home_address_and_home_agent_is_excluded_and_blocked() -> None:
    """RFC 5555 §5.2.2: remote_address != home_agent; and stronger than the payload rule."""
    state = desired(MN, active=True, binding=BOUND, negotiated=negotiated(PRIVATE, nat=True))
    for home, agent, anywhere in ((HOME, AGENT, "::/0"), (HOME4, AGENT4, "0.0.0.0/0")):
        excluded = find(state, Direction.OUT, payload(home, agent))
        assert excluded.action is Action.BLOCK
        assert excluded.priority < find(state, Direction.OUT, payload(home, anywhere)).priority
        assert find(state, Direction.IN, payload(agent, home)).action is Action.BLOCK


def test_without_sas_everything_of_the_mobile_node_is_blocked() -> None:
    state = desired(MN, active=True, binding=None, negotiated=[])
    outward = [p for p in state.policies if p.direction is Direction.OUT]
    assert {p.action for p in outward} == {Action.BLOCK}
    assert find(state, Direction.OUT, payload(HOME, "::/0"))
    assert find(state, Direction.OUT, payload(HOME4, "0.0.0.0/0"))


@pytest.mark.rfc("5555-5.1-5")
def test_payload_waits_for_the_binding_even_with_an_sa() -> None:
    state = desired(MN, active=True, binding=None, negotiated=negotiated(PRIVATE, nat=True))
    assert find(state, Direction.OUT, payload(HOME, "::/0")).action is Action.BLOCK


def test_the_home_agent_leaves_payload_alone_without_a_binding() -> None:
    """RFC 6275 §10.4.1: it intercepts packets only for nodes that are registered."""
    state = desired(HA, active=True, binding=None, negotiated=negotiated(NAT, nat=True))
    assert state.policies
    assert all(p.selector.protocol == 135 for p in state.policies)


def test_nothing_is_wanted_when_mobility_is_over() -> None:
    for peering in (MN, HA):
        assert desired(peering, active=False, binding=None, negotiated=[]) == DesiredState()


def test_sas_of_others_are_ignored() -> None:
    foreign = association(0x99, PRIVATE, AGENT4, 77)
    assert desired(MN, active=True, binding=BOUND, negotiated=[foreign]) == desired(
        MN, active=True, binding=BOUND, negotiated=[]
    )


def test_all_priorities_are_in_our_band() -> None:
    state = desired(HA, active=True, binding=BOUND, negotiated=negotiated(NAT, nat=True))
    assert {p.priority for p in state.policies} <= set(PRIORITY_BAND)


def test_unprotected_data_has_no_payload_policies() -> None:
    bare = replace(MN, protect_data=False)
    state = desired(bare, active=True, binding=BOUND, negotiated=negotiated(PRIVATE, nat=True))
    assert not [p for p in state.policies if p.template and p.template.mode is Mode.TUNNEL]


# Plans -------------------------------------------------------------------------------------------

NOTHING = DesiredState()
STATES = {
    "nothing": NOTHING,
    "connecting": desired(MN, active=True, binding=None, negotiated=[]),
    "secured": desired(MN, active=True, binding=None, negotiated=negotiated(PRIVATE, nat=True)),
    "nat": desired(MN, active=True, binding=BOUND, negotiated=negotiated(PRIVATE, nat=True)),
    "public": desired(
        MN,
        active=True,
        binding=binding(PUBLIC, PUBLIC, nat=False),
        negotiated=negotiated(PUBLIC, nat=False),
    ),
}


def apply(state: DesiredState, operation: Operation) -> DesiredState:
    """What a kernel makes of one operation; refuses what a kernel would refuse."""
    policies = {p.key: p for p in state.policies}
    associations = {sa.key: sa for sa in state.associations}
    extensions = {e.key: e for e in state.extensions}
    subject = operation.subject
    if isinstance(subject, Policy):
        assert (subject.key in policies) == (operation.verb is not Verb.ADD_POLICY)
        policies[subject.key] = subject
        if operation.verb is Verb.DELETE_POLICY:
            del policies[subject.key]
    elif isinstance(subject, ExtensionState):
        assert (subject.key in extensions) == (operation.verb is not Verb.ADD_EXTENSION)
        extensions[subject.key] = subject
        if operation.verb is Verb.DELETE_EXTENSION:
            del extensions[subject.key]
    else:
        assert isinstance(subject, SecurityAssociation)
        assert (subject.key in associations) == (operation.verb is Verb.DELETE_ASSOCIATION)
        associations[subject.key] = subject
        if operation.verb is Verb.DELETE_ASSOCIATION:
            del associations[subject.key]
    return DesiredState(
        tuple(policies.values()),
        tuple(associations.values()),
        extensions=tuple(extensions.values()),
    )


def as_sets(state: DesiredState) -> tuple[set[Policy], set[SecurityAssociation], set[object]]:
    return set(state.policies), set(state.associations), set(state.extensions)


@pytest.mark.parametrize("old", STATES)
@pytest.mark.parametrize("new", STATES)
def test_a_plan_leads_from_any_state_to_any_other(old: str, new: str) -> None:
    state = STATES[old]
    operations = plan(state, STATES[new])
    assert (operations == ()) == (old == new)
    covered = {p.key for p in state.policies} & {p.key for p in STATES[new].policies}
    for operation in operations:
        state = apply(state, operation)
        # No moment without a policy that both states have: nothing could leave in clear.
        assert covered <= {p.key for p in state.policies}
        assert operation.reason
        assert operation.reference.startswith("RFC ")
    assert as_sets(state) == as_sets(STATES[new])


LEAVING = [Verb.DELETE_POLICY, Verb.DELETE_EXTENSION, Verb.DELETE_ASSOCIATION]


def test_make_before_break() -> None:
    verbs = [operation.verb for operation in plan(STATES["nat"], STATES["nothing"])]
    assert verbs == sorted(verbs, key=LEAVING.index)
    verbs = [operation.verb for operation in plan(STATES["connecting"], STATES["nat"])]
    assert verbs == sorted(verbs, key=[Verb.ADD_ASSOCIATION, Verb.UPDATE_POLICY].index)


def test_a_handover_changes_the_outbound_payload_template_and_nothing_else() -> None:
    operations = plan(STATES["nat"], STATES["public"])
    assert {o.verb for o in operations} == {Verb.UPDATE_POLICY}
    subjects = [o.subject for o in operations]
    assert len(subjects) == 2  # one a family
    for subject in subjects:
        assert isinstance(subject, Policy)
        assert subject.direction is Direction.OUT
        assert subject.template is not None
        assert subject.template.source == PUBLIC


def test_no_text_of_a_plan_shows_a_key() -> None:
    operations = plan(NOTHING, STATES["nat"])
    text = " ".join([*map(str, operations), *map(repr, operations)])
    assert AEAD.key.reveal().hex() not in text
    assert repr(AEAD.key.reveal()) not in text
    assert "SecretKey 160 bits" in text


def test_what_stays_in_a_mobile_network_is_not_tunnelled() -> None:
    """Between both networks behind the router, and with its neighbours."""
    one, other = IPv6Network("2001:db8:beef::/64"), IPv6Network("2001:db8:cafe::/64")
    router = replace(MN, mobile_network_prefixes=(one, other))
    state = desired(router, active=True, binding=None, negotiated=())
    staying = [policy for policy in state.policies if policy.action is Action.BYPASS]
    neighbours, groups = ip_network("fe80::/10"), ip_network("ff02::/16")
    wanted = {(d, Selector(a, b)) for d in Direction for a in (one, other) for b in (one, other)}
    for each in (one, other):
        wanted |= {(Direction.OUT, Selector(each, near)) for near in (neighbours, groups)}
        wanted.add((Direction.IN, Selector(neighbours, each)))
    assert {policy.key for policy in staying} == wanted
    # Stronger than what leads all else into the tunnel.
    tunnelled = [
        p for p in state.policies if p not in staying and p.selector.source in (one, other)
    ]
    assert tunnelled
    assert max(p.priority for p in staying) < min(p.priority for p in tunnelled)


def test_without_a_mobile_network_nothing_bypasses() -> None:
    at_home_agent = replace(HA, mobile_network_prefixes=(IPv6Network("2001:db8:beef::/64"),))
    for peering in (MN, at_home_agent):
        state = desired(peering, active=True, binding=None, negotiated=())
        assert not [policy for policy in state.policies if policy.action is Action.BYPASS]
