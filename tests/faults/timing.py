"""Timed scenarios by hand, from the folder `tests`: `python -m faults.timing SCENARIO [name=value …]` prints JSON.

Scenarios: kill, freeze, outage, rolling, join; names and values are those of the scenario's function.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from faults.timing_join import join
from faults.timing_outage import outage
from faults.timing_rolling import rolling
from faults.timing_takeover import takeover

SCENARIOS: dict[str, Callable[..., dict[str, Any]]] = {
    "kill": partial(takeover, signal.SIGKILL),
    "freeze": partial(takeover, signal.SIGSTOP),
    "outage": outage,
    "rolling": rolling,
    "join": join,
}


def main(scenario: str, *settings: str) -> None:
    given = {name: json.loads(value) for name, _, value in (word.partition("=") for word in settings)}
    print(json.dumps({"scenario": scenario, **given, **SCENARIOS[scenario](**given)}, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
