"""`python -m honed`."""

import sys

from honed.cli.main import main

sys.exit(main())
