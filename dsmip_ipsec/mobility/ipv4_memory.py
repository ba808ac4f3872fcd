"""What a mobile node remembers about its IPv4 home address (RFC 5555 §2.3.1, §2.5, §4.4.2)."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from dsmip_ipsec.mobility.mobile_node_config import MobileNodeConfig
from dsmip_ipsec.wire.options import IPv4AddressAck, IPv4HomeAddress

_ANY_IPV4 = IPv4Address(0)


@dataclass(frozen=True, slots=True)
class IPv4Answer:
    """What a home agent granted in IPv4, and the acknowledgements that refuse.

    ``given`` is False when there was no acknowledgement option at all. ``prefix_places`` says
    which of the prefixes that were asked for each of ``prefixes`` is.
    """

    home_address: IPv4Interface | None
    prefixes: tuple[IPv4Network, ...]
    refused: tuple[IPv4AddressAck, ...]
    given: bool
    prefix_places: tuple[int, ...] = ()


class IPv4Memory:
    """Which IPv4 home address options to send, by what was granted before.

    ``wanted``: the user wants IPv4. ``supported``: no home agent has left the options unanswered.
    """

    __slots__ = ("_address", "_config", "_prefixes", "supported", "wanted")

    def __init__(self, config: MobileNodeConfig) -> None:
        self._config = config
        self.wanted = True
        self.supported = True
        self._address: IPv4Interface | None = None  # dynamic, as allocated
        # What was allocated for each prefix that is asked for, in the order of the options.
        self._prefixes: list[IPv4Network | None] = [None] * len(config.ipv4_prefix_lengths)

    def options(self) -> tuple[IPv4HomeAddress, ...]:
        """RFC 5555 §4.4.2: the static address, or the dynamic one once it is known, or 0.0.0.0;
        §3.1.1: P in the first request for a prefix, then the allocated prefix itself."""
        if not (self.wanted and self.supported):
            return ()
        config = self._config
        options: list[IPv4HomeAddress] = []
        address = config.ipv4_home_address or self._address
        if address is not None:
            length = address.network.prefixlen
            options.append(IPv4HomeAddress(length, False, IPv4Address(address.ip)))
        elif config.request_ipv4:
            options.append(IPv4HomeAddress(32, False, _ANY_IPV4))
        for length, prefix in zip(config.ipv4_prefix_lengths, self._prefixes, strict=True):
            if prefix is not None:
                options.append(IPv4HomeAddress(prefix.prefixlen, False, prefix.network_address))
            else:
                options.append(IPv4HomeAddress(length, True, _ANY_IPV4))
        return tuple(options)

    def read(
        self,
        requests: tuple[IPv4HomeAddress, ...],
        acknowledgements: tuple[IPv4AddressAck, ...],
    ) -> IPv4Answer:
        """Match acknowledgement options with what was asked for, in order (RFC 5555 §3.2.1: the
        address and prefix length in them override those that were requested)."""
        address: IPv4Interface | None = None
        prefixes: list[IPv4Network] = []
        places: list[int] = []
        first_prefix = 1 if self._config.wants_ipv4_address else 0  # as options() puts them
        refused: list[IPv4AddressAck] = []
        for place, acknowledgement in enumerate(acknowledgements[: len(requests)]):
            granted = (acknowledgement.address, acknowledgement.prefix_len)
            if not acknowledgement.accepted or not 1 <= acknowledgement.prefix_len <= 32:
                # (Success with a length that is none is nothing that one could configure.)
                refused.append(acknowledgement)
            elif place < first_prefix:
                address = IPv4Interface(granted)
            else:
                prefixes.append(IPv4Network(granted, strict=False))
                places.append(place - first_prefix)
        return IPv4Answer(
            address, tuple(prefixes), tuple(refused), bool(acknowledgements), tuple(places)
        )

    def learn(self, answer: IPv4Answer) -> bool:
        """Take note of ``answer``. True: something that was granted before is gone, and it is
        worth asking again at once."""
        if answer.home_address is not None and self._config.ipv4_home_address is None:
            self._address = answer.home_address
        for place, prefix in zip(answer.prefix_places, answer.prefixes, strict=True):
            self._prefixes[place] = prefix
        again = False
        for refused in answer.refused:
            if self._address is not None and refused.address == self._address.ip:
                self._address = None
                again = True
            for place, known in enumerate(self._prefixes):
                if known is not None and refused.address == known.network_address:
                    self._prefixes[place] = None
                    again = True
        return again

    def forget(self) -> None:
        """A lease ends with its binding (RFC 5555 §2.5)."""
        self._address = None
        self._prefixes = [None] * len(self._prefixes)
