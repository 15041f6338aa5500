"""`python -m zsad`, which is also what torchrun starts."""

from zsad.cli.main import main

raise SystemExit(main())
