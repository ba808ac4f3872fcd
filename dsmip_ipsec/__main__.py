"""``python -m dsmip_ipsec``: the same as the command ``dsmip-ipsec``."""

import sys

from dsmip_ipsec.cli.main import main

sys.exit(main())
