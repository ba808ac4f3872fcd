"""What a lab can't do, and can't tell, where IPsec is in the daemons' own process.

There the keys are made by the lab and configured (RFC 4301 §4.5.1): no IKE, hence no charon. SAs
stay for as long as the daemons run, and are moved by what bindings say. A lab that needs more is
refused, by the names of what it needs; an expectation that there is nothing to judge by is told as
such in the record, and neither held nor failed.
"""

from __future__ import annotations

from collections.abc import Iterator

from dsmip_ipsec.errors import ConfigError
from dsmip_ipsec.lab import routes
from dsmip_ipsec.lab.expect_models import Expect
from dsmip_ipsec.lab.record import NotApplicable
from dsmip_ipsec.lab.spec_models import Lab, Step
from dsmip_ipsec.node.config import IpsecKind

_MTU = 1500  # of a link of which the lab file doesn't say it
_HINT = "run it without --ipsec userspace"
_NO_IKE = "there is no IKE: the keys are configured"
_LASTING = "configured SAs, and the policies for signalling by them, stay without a binding"
_NOT_APPLICABLE = {
    "ike_alive": ("IKE exchange", _NO_IKE),
    "same_ike_sa": ("same IKE_SA", _NO_IKE),
    "ike_sas": ("IKE_SAs", _NO_IKE),
    "security_associations": ("security associations", _LASTING),
    "policies": ("policies", _LASTING),
}


def check(lab: Lab, ipsec: IpsecKind) -> None:
    """Raises ConfigError, with everything in ``lab`` that can't be had with that kind of IPsec."""
    if ipsec == "kernel":
        return
    reasons = list(dict.fromkeys(_reasons(lab)))
    if reasons:
        raise ConfigError(
            f"the lab {lab.lab.name} can't run with user-space IPsec: {'; '.join(reasons)}",
            hint=_HINT,
        )


def check_step(lab: Lab, step: Step, ipsec: IpsecKind) -> None:
    """Raises ConfigError for a step that can't be done with that kind of IPsec."""
    if ipsec == "userspace":
        for reason in _of_step(lab, step):
            raise ConfigError(f"not with user-space IPsec: {reason}", hint=_HINT)


def check_expect(expect: Expect, ipsec: IpsecKind) -> None:
    """Raises ConfigError where ``expect`` asks for what can't be judged."""
    for missing in applicable(expect, ipsec)[1]:
        raise ConfigError(
            f"'{missing.name}' can't be judged with user-space IPsec: {missing.reason}",
            hint="leave it out, or start the lab without user-space IPsec",
        )


def applicable(expect: Expect, ipsec: IpsecKind) -> tuple[Expect, tuple[NotApplicable, ...]]:
    """``expect`` without what can't be judged with that kind of IPsec, and that."""
    if ipsec == "kernel":
        return expect, ()
    asked = [key for key in _NOT_APPLICABLE if getattr(expect, key) is not None]
    found = tuple(
        NotApplicable(name=name, reason=reason)
        for name, reason in (_NOT_APPLICABLE[key] for key in asked)
    )
    return expect.model_copy(update=dict.fromkeys(asked)), found


def _reasons(lab: Lab) -> Iterator[str]:
    if not lab.data.protected:
        yield "it carries payload without IPsec ([data] protected = false), by kernel tunnels"
    if lab.ike.mobility != "mobike":
        yield f"it is about an IKE_SA that follows a move ([ike] mobility = {lab.ike.mobility!r})"
    if lab.ike.wrong_key is not None:
        yield f"IKE shall refuse a key ([ike] wrong_key = {lab.ike.wrong_key!r})"
    if lab.mobility.detect_movement:
        yield "movement is detected by IPv6 router advertisements ([mobility] detect_movement)"
    if not lab.data.copy_df:
        yield "the daemons' tunnels always copy the DF bit ([data] copy_df = false)"
    narrow = [name for name, link in lab.links.items() if (link.mtu or _MTU) < _MTU]
    if narrow:
        yield (
            f"links are narrow ({', '.join(narrow)}), and the daemons' tunnels don't tell senders "
            "what is too big (RFC 4459 §3.2)"
        )
    for step in lab.steps:
        for reason in _of_step(lab, step):
            yield f"step '{step.name}': {reason}"


def _of_step(lab: Lab, step: Step) -> Iterator[str]:
    if step.restart is not None:
        yield "a daemon that starts again would use sequence numbers, hence IVs, again (restart)"
    if step.kill is not None and step.kill.startswith("charon"):
        yield f"there is no {step.kill}"
    if step.network is None:
        return
    for node in lab.step_nodes(step):
        if routes.is_home(lab, node, step.network):
            yield f"{node} returns home, which is signalled without UDP"
        elif routes.attachment(lab, node, step.network).address(6) is not None:
            yield f"{node} has an IPv6 care-of address on {step.network}; only IPv4 ones can be"
