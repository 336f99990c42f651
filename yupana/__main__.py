"""`python -m yupana`: the command line."""

import sys

from yupana.cli import main

sys.exit(main())
