"""Field types of the run record (:mod:`dsmip_ipsec.lab.record`), and what its models have in
common."""

from __future__ import annotations

from datetime import UTC
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field


def _spi_text(value: object) -> object:
    """Let callers hand an SPI in as the number that it is; the record writes it in hex."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 0xFFFFFFFF:
        return f"0x{value:08x}"
    return value


def _relative(value: str) -> str:
    if value.startswith("/") or ".." in value.split("/"):
        raise ValueError("a path inside the record's directory is wanted")
    return value


Address = IPv4Address | IPv6Address
Utc = Annotated[AwareDatetime, AfterValidator(lambda moment: moment.astimezone(UTC))]
Spi = Annotated[str, BeforeValidator(_spi_text), Field(pattern=r"^0x[0-9a-f]{8}$")]
Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=0)]
Milliseconds = Annotated[float, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
RelativePath = Annotated[str, AfterValidator(_relative)]
Verdict = Literal["passed", "failed", "error"]


class Model(BaseModel):
    """Frozen, closed (no unnamed fields), and without NaN, which isn't JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
