"""IPsec in this process: for kernels without ESP, and for reading captures."""
