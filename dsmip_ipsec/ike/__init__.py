"""strongSwan: inventory, PKI, configuration files, the charon process and its VICI socket."""
