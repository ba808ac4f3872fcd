"""Octets to frozen dataclasses and back: no sockets, no clocks, no state."""
