"""Classic BPF programs on sockets (linux/filter.h)."""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Sequence
from typing import Final

_SO_ATTACH_FILTER = 26
_INSTRUCTION = struct.Struct("=HBBI")
_PROGRAM = struct.Struct("@HP")

# Operation codes; SKF_AD_OFF plus the number is a piece of metadata of the packet.
LOAD_WORD: Final = 0x20
LOAD_OCTET: Final = 0x30
JUMP_EQUAL: Final = 0x15
RETURN: Final = 0x06
PACKET_TYPE: Final = 0xFFFFF004
PACKET_MARK: Final = 0xFFFFF014

ALL: Final = 0x00040000

Instruction = tuple[int, int, int, int]


def attach(to: socket.socket, program: Sequence[Instruction]) -> None:
    """Let only those packets in for which ``program`` returns more than 0.

    An instruction is (code, jump if true, jump if false, operand). Raises OSError.
    """
    code = b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    to.setsockopt(
        socket.SOL_SOCKET,
        _SO_ATTACH_FILTER,
        _PROGRAM.pack(len(program), ctypes.addressof(buffer)),
    )
