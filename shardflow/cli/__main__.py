"""`python -m shardflow.cli`: the command line where the script `shardflow` is not on the path."""

from __future__ import annotations

from .main import main

main()
