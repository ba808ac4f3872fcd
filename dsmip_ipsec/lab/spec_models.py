"""The models of a lab file (:mod:`dsmip_ipsec.lab.spec` reads one).

A lab file declares nodes, the links between them, what the protocols shall do, and the steps of
the scenario with what must hold after each. Addresses are written where they are configured;
routes are derived (:mod:`dsmip_ipsec.lab.routes`).
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import Annotated, Literal, Self, get_args

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from .expect_models import Expect
from .spec_types import (
    Addresses,
    Filtering,
    Interface,
    IPv4Text,
    IPv6Text,
    LinkName,
    NodeName,
    Table,
    as_tuple,
)

# [lab], [nodes.*], [links.*] -----------------------------------------------------------------


class About(Table):
    """[lab]: what the lab is called and shows."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,47}$")]
    description: str = ""


class MobileNode(Table):
    """A node with home addresses that moves between the links it has an end on.

    ``mobile_networks``: links that move with it. It is their router, and their IPv6 prefixes are
    its mobile network prefixes (RFC 3963). ``count``: see :mod:`dsmip_ipsec.lab.replicas`.
    ``claims_ipv4_home_address``: the IPv4 home address that its daemon believes in and asks for in
    binding updates, while home agent and IKE know it by ``ipv4_home_address``.
    """

    role: Literal["mobile_node"]
    home_address: IPv6Text
    ipv4_home_address: IPv4Text | None = None
    claims_ipv4_home_address: IPv4Text | None = None
    mobile_networks: Annotated[tuple[LinkName, ...], BeforeValidator(as_tuple)] = ()
    count: Annotated[int, Field(ge=1, le=200)] = 1


class MobileNetworkNode(Table):
    """A host on a mobile network, which knows nothing of mobility (RFC 3963)."""

    role: Literal["mobile_network_node"]


class HomeAgent(Table):
    """The home agent. It forwards packets, and its home link has the home addresses' prefixes.

    Without ``address``/``ipv4_address`` its addresses on the home link are the home agent
    addresses. ``outer_ipv4_address``: where mobile nodes find it instead of at its own IPv4
    address, that of a NAT which forwards to it (RFC 5555 §1.3, scenario 3).
    """

    role: Literal["home_agent"]
    home_link: LinkName
    address: IPv6Text | None = None
    ipv4_address: IPv4Text | None = None
    outer_ipv4_address: IPv4Text | None = None


class CorrespondentNode(Table):
    """A host that mobile nodes talk to."""

    role: Literal["correspondent_node"]


class Router(Table):
    """A node that forwards packets."""

    role: Literal["router"]


class Nat(Table):
    """An IPv4 NAPT between the links ``inside`` and ``outside``.

    ``mapping``: ``random`` gives every UDP and TCP flow another port than it had, ``preserve``
    keeps the port where it is free. ``filtering`` of UDP (RFC 4787 §5): what may come in to a port
    that a node inside sends from. With ``address-and-port-dependent`` that is what it sends to;
    with ``address-dependent`` all ports of the addresses that it sends to, with
    ``endpoint-independent`` everybody. The latter two are for a NAT with one node inside.
    In RFC 3489's words: symmetric (random), port restricted cone, restricted cone, full cone.
    ``udp_timeout_s``: a mapping's life without traffic (the kernel's own default when absent).
    ``forward_ports``: UDP ports of its outside address that lead, from anywhere, to the same ports
    of the node ``forward_to`` inside (a static NAPT).
    """

    role: Literal["nat"]
    inside: LinkName
    outside: LinkName
    mapping: Literal["random", "preserve"] = "random"
    filtering: Filtering = "address-and-port-dependent"
    udp_timeout_s: Annotated[int, Field(ge=1)] | None = None
    forward_ports: Annotated[
        tuple[Annotated[int, Field(ge=1, le=65535)], ...], BeforeValidator(as_tuple)
    ] = ()
    forward_to: NodeName | None = None

    @model_validator(mode="after")
    def _forwards_somewhere(self) -> Self:
        if bool(self.forward_ports) != (self.forward_to is not None):
            raise ValueError("should have 'forward_ports' and 'forward_to', or neither")
        return self

    @model_validator(mode="after")
    def _is_one_of_the_kinds(self) -> Self:
        if self.mapping == "random" and self.filters_loosely():
            raise ValueError(
                f"should have mapping = 'preserve' where filtering is {self.filtering}"
            )
        return self

    def filters_loosely(self) -> bool:
        """Whether more comes in than answers."""
        return self.filtering != "address-and-port-dependent"


Node = Annotated[
    MobileNode | MobileNetworkNode | HomeAgent | CorrespondentNode | Router | Nat,
    Field(discriminator="role"),
]


class Impairment(Table):
    """What each end of a link does to what it sends (netem): ``delay_ms`` one way, plus or minus
    ``jitter_ms`` (which reorders), ``loss_percent`` of all packets at random, and no more than
    ``rate_kbit`` kilobits a second."""

    delay_ms: Annotated[float, Field(ge=0, le=60_000, allow_inf_nan=False)] = 0.0
    jitter_ms: Annotated[float, Field(ge=0, le=60_000, allow_inf_nan=False)] = 0.0
    loss_percent: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 0.0
    rate_kbit: Annotated[int, Field(ge=8)] | None = None

    def impairs(self) -> bool:
        """Whether it does anything."""
        return bool(self.delay_ms or self.jitter_ms or self.loss_percent or self.rate_kbit)


class Link(Impairment):
    """A link between its ends: a wire between two, a switch between more; one may be alone on it.

    ``ends``: node name → its addresses there (with prefix lengths). ``mtu`` in
    octets. ``gateway``: the node that a mobile node uses as its
    router here (found when only one of the ends forwards). ``up``: whether it starts up.
    ``router_advertisements``: radvd runs on the gateway, and hosts here take IPv6 addresses from
    its prefixes. ``dhcp``: dnsmasq runs there, and gives mobile nodes IPv4 address and router.
    """

    ends: Annotated[dict[NodeName, Addresses], Field(min_length=1)]
    mtu: Annotated[int, Field(ge=576, le=65535)] | None = None
    gateway: NodeName | None = None
    up: bool = True
    router_advertisements: bool = False
    dhcp: bool = False


# [mobility], [ike], [data], [flow] -----------------------------------------------------------


class Mobility(Table):
    """[mobility]: ``lifetime_s``: lifetime asked for in a binding update, in seconds (RFC 6275
    §6.1.7 counts it in units of 4 s). ``key_mobility``: set the K bit. ``force_udp``: set the F
    flag (RFC 5555 §3.1.3). ``nat_refresh_time_s``: between two binding updates that keep a NAT's
    mapping alive, as the home agent asks for it (RFC 5555 §4.3). ``handover_timeout_s``: after
    which a mobile node gives a handover up. ``detect_movement``: mobile nodes find out where they
    are by themselves; a step that moves one changes the links' carrier and tells it nothing.
    ``prefix_discovery``, ``return_routability``: SAs of their own for what RFC 4877 §4.3 and §4.2
    protect, the latter where payload isn't protected."""

    lifetime_s: Annotated[int, Field(ge=4, le=4 * 65535)] = 600
    key_mobility: bool = False
    force_udp: bool = False
    nat_refresh_time_s: Annotated[int, Field(ge=1)] = 110
    handover_timeout_s: Annotated[float, Field(ge=1, le=20)] = 15.0
    detect_movement: bool = False
    prefix_discovery: bool = False
    return_routability: bool = False


class Ike(Table):
    """[ike]: how the peers authenticate, and how the IKE_SA follows a move (RFC 5555 §5.1).

    ``wrong_key``: a mobile node that gets credentials which the home agent doesn't know.
    """

    auth: Literal["certificate", "psk"] = "certificate"
    wrong_key: NodeName | None = None
    mobility: Literal["mobike", "k-bit", "renegotiate"] = "mobike"


class Data(Table):
    """[data]: ``protected``: payload goes through ESP tunnels (RFC 5555 §5.2.2). ``copy_df``: their
    outer IPv4 headers have the DF bit of what is inside (RFC 4301 §8.1)."""

    protected: bool = True
    copy_df: bool = True


class Flow(Table):
    """[flow]: probes between each home address and the correspondent, both ways each. A mobile
    router's IPv6 probes are those of the first host on its mobile networks, where there is one.

    ``protocol``: each is a UDP datagram, or they are what a TCP connection carries, which the
    mobile node makes. ``interval_ms``: between two probes of one direction. ``size``: in octets.
    ``correspondent``: needed when there is more than one. ``nodes``: mobile nodes that have flows;
    the first one when absent. ``families``: of the home addresses that are used.
    ``traffic_class``: DSCP and ECN of the probes, as one octet (RFC 2474, RFC 3168).
    """

    families: Annotated[tuple[Literal["ipv4", "ipv6"], ...], BeforeValidator(as_tuple)] = (
        "ipv4",
        "ipv6",
    )
    nodes: Annotated[tuple[NodeName, ...], BeforeValidator(as_tuple)] = ()
    interval_ms: Annotated[float, Field(ge=1, le=1000)] = 5.0
    size: Annotated[int, Field(ge=32, le=1400)] = 64
    port: Annotated[int, Field(ge=1, le=65535)] = 7777
    correspondent: NodeName | None = None
    traffic_class: Annotated[int, Field(ge=0, le=255)] = 0
    protocol: Literal["udp", "tcp"] = "udp"

    @model_validator(mode="after")
    def _class_of_datagrams(self) -> Self:
        if self.traffic_class and self.protocol == "tcp":
            raise ValueError("should not have a 'traffic_class' with TCP, which has its own ECN")
        return self


class Capture(Table):
    """[capture]: ``links``: those that are captured, each at all of its ends; all when absent."""

    links: Annotated[tuple[LinkName, ...], BeforeValidator(as_tuple)] | None = None


# [[steps]] -----------------------------------------------------------------------------------


class Block(Table):
    """What a router drops from now on, whoever sent it: UDP or TCP packets from or to a port, or
    everything of an IP protocol (``ipip``: IPv4 in IPv4, ``ipv6``: IPv6 in IPv4, ``esp``); all in
    IPv4 packets. ``native-ipv6``: every IPv6 packet that it would forward, without a word."""

    node: NodeName
    protocol: Literal["udp", "tcp", "ipip", "ipv6", "esp", "native-ipv6"] = "udp"
    port: Annotated[int, Field(ge=1, le=65535)] | None = None

    @model_validator(mode="after")
    def _port_where_there_are_ports(self) -> Self:
        if (self.port is None) == (self.protocol in ("udp", "tcp")):
            raise ValueError("should have a 'port' with udp and tcp, and only with these")
        return self

    def __str__(self) -> str:
        what = self.protocol if self.port is None else f"{self.protocol} port {self.port}"
        return f"{what} at {self.node}"


class Rebind(Table):
    """A NAT that forgets its mappings: those of the flows to UDP port ``port``, or all."""

    node: NodeName
    port: Annotated[int, Field(ge=1, le=65535)] | None = None

    def __str__(self) -> str:
        return f"{self.node}" if self.port is None else f"UDP port {self.port} at {self.node}"


class Impair(Impairment):
    """How a link is from now on, at each of its ends; what isn't named is as on a good link."""

    link: LinkName

    def __str__(self) -> str:
        terms = [
            f"{self.delay_ms:g} ms delay" * bool(self.delay_ms),
            f"{self.jitter_ms:g} ms jitter" * bool(self.jitter_ms),
            f"{self.loss_percent:g} % loss" * bool(self.loss_percent),
            f"{self.rate_kbit} kbit/s" * bool(self.rate_kbit),
        ]
        return f"{self.link}: {', '.join(filter(None, terms)) or 'nothing'}"


Verb = Literal[
    "attach", "move", "deregister", "block", "unblock", "rebind", "congest", "impair", "kill",
    "restart", "wait_s",
]  # fmt: skip


class Step(Table):
    """One step: exactly one verb, done by the mobile node ``node`` (all of them when absent).

    ``attach``: appear in the named network. ``move``: hand over to it. ``deregister``: remove all
    bindings (lifetime 0). ``block``: have a router or NAT drop something; ``unblock``: no longer.
    ``congest``: have a router set CE on ECN capable IPv4 packets that it forwards (RFC 3168 §5).
    ``rebind``: have a NAT give flows other mappings. ``impair``: make a link
    lossy, slow or jittery, or well again. ``kill``: end a process
    of the lab with SIGKILL, by its name: ``charon of NODE``, ``daemon of NODE``, ``flows of NODE``
    or ``capture``. ``restart``: kill charon and daemon of a node, both with SIGKILL, and start them
    again. ``wait_s``: let that many seconds pass, such as a NAT's time-out.

    On the home agent's home link a mobile node is at home: ``attach`` and ``move`` go there, too.

    ``fails``: the mobile node's daemon has to refuse the step, or to give it up, and these words
    are in what it says. The mobile node then counts as being where it was.
    """

    name: Annotated[str, StringConstraints(min_length=1, max_length=80)]
    node: NodeName | None = None
    attach: LinkName | None = None
    move: LinkName | None = None
    deregister: Literal[True] | None = None
    block: Block | None = None
    unblock: Block | None = None
    rebind: Rebind | None = None
    congest: NodeName | None = None
    impair: Impair | None = None
    kill: Annotated[str, StringConstraints(min_length=1, max_length=80)] | None = None
    restart: NodeName | None = None
    wait_s: Annotated[float, Field(gt=0, le=20)] | None = None
    fails: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None
    expect: Expect = Expect()

    def verbs(self) -> tuple[Verb, ...]:
        """The verbs that the step has (one, once the lab was checked)."""
        verbs: tuple[Verb, ...] = get_args(Verb)
        return tuple(verb for verb in verbs if getattr(self, verb) is not None)

    @property
    def verb(self) -> Verb:
        """What the step does."""
        return self.verbs()[0]

    @property
    def network(self) -> str | None:
        """The link that the step brings the mobile node to."""
        return self.attach or self.move


class Lab(Table):
    """A whole lab file."""

    lab: About
    nodes: Annotated[dict[NodeName, Node], Field(min_length=1)]
    links: Annotated[dict[LinkName, Link], Field(min_length=1)]
    mobility: Mobility = Mobility()
    ike: Ike = Ike()
    data: Data = Data()
    flow: Flow = Flow()
    capture: Capture = Capture()
    steps: Annotated[tuple[Step, ...], BeforeValidator(as_tuple)] = ()

    def mobile_nodes(self) -> dict[str, MobileNode]:
        """Mobile nodes by name, in the file's order."""
        return {name: node for name, node in self.nodes.items() if isinstance(node, MobileNode)}

    def home_agents(self) -> dict[str, HomeAgent]:
        """Home agents by name."""
        return {name: node for name, node in self.nodes.items() if isinstance(node, HomeAgent)}

    def flow_nodes(self) -> tuple[str, ...]:
        """The mobile nodes that have flows."""
        return self.flow.nodes or tuple(self.mobile_nodes())[:1]

    def host_behind(self, node: str) -> str | None:
        """The first host on the mobile networks of ``node``."""
        for link in self.mobile_nodes()[node].mobile_networks:
            for end in self.links[link].ends:
                if isinstance(self.nodes[end], MobileNetworkNode):
                    return end
        return None

    def correspondent(self) -> str:
        """Name of the correspondent that the flows go to (checked when the lab was loaded)."""
        return self.flow.correspondent or next(
            name for name, node in self.nodes.items() if isinstance(node, CorrespondentNode)
        )

    def step_nodes(self, step: Step) -> tuple[str, ...]:
        """The mobile nodes that ``step`` is about (checked when the lab was loaded): the one that
        it names or, where it names none, the only one or all."""
        return tuple(self.mobile_nodes()) if step.node is None else (step.node,)

    def addresses(self, node: str, link: str | None = None) -> Iterator[Interface]:
        """Addresses of ``node`` (on ``link`` only, if given) in the file's order."""
        for name, candidate in self.links.items():
            if link in (None, name):
                yield from candidate.ends.get(node, ())

    def ipv6_address(self, node: str, link: str | None = None) -> IPv6Address | None:
        """The first IPv6 address of ``node``."""
        found = (a.ip for a in self.addresses(node, link) if isinstance(a, IPv6Interface))
        return next(found, None)

    def ipv4_address(self, node: str, link: str | None = None) -> IPv4Address | None:
        """The first IPv4 address of ``node``."""
        found = (a.ip for a in self.addresses(node, link) if isinstance(a, IPv4Interface))
        return next(found, None)

    def home_agent_address(self, node: str) -> IPv6Address | None:
        """IPv6 address of home agent ``node`` (RFC 6275's home agent address)."""
        home_agent = self.home_agents()[node]
        return home_agent.address or self.ipv6_address(node, home_agent.home_link)

    def home_agent_ipv4_address(self, node: str) -> IPv4Address | None:
        """IPv4 address of home agent ``node``, to which mobile nodes tunnel."""
        home_agent = self.home_agents()[node]
        return home_agent.ipv4_address or self.ipv4_address(node, home_agent.home_link)
