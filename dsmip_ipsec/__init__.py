"""Dual-Stack Mobile IPv6 (RFC 5555) with IPsec, on an unmodified Linux and a stock strongSwan."""

__version__ = "0.1.0"
