"""Workers of the kill tests, by fork, see `kill_app`: plain workflows, failures, time limits, values, versions of the
code; kill points for them."""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import dataclass
from fractions import Fraction

from faults import kill_app
from faults.kill_app import PAUSE, _write, app, effect
from faults.kill_wide_mutants import WIDE_MUTANTS
from support.cipher import Cipher

import shardflow
from shardflow import Codecs, Retry, blocking

LONG = 100_000


@app.step
def plain_effect(what: str) -> str:
    """See `kill_app.effect`."""
    _write(what)
    return uuid.uuid4().hex[:8]


@app.workflow
def plain_effects(count: int) -> list[str]:
    return [plain_effect(str(n)) for n in range(count)]


@app.step(retry=Retry(attempts=3, initial=PAUSE, factor=1.0, jitter=0.0))
def plain_patient() -> None:
    _write("try")
    raise ValueError("no")


@app.workflow
def plain_tries() -> int:
    try:
        plain_patient()
    except shardflow.StepFailed as error:
        return error.attempts
    return 0


@app.workflow
def plain_naps(seconds: float) -> None:
    plain_effect("before")
    blocking.sleep(seconds)
    plain_effect("after")


@app.workflow
def plain_listens() -> list[object]:
    heard: list[object] = []
    while (said := blocking.receive("n")) != "end":
        plain_effect(f"heard {said}")
        heard.append(said)
    return heard


@app.workflow
def plain_sends(id: str) -> None:
    blocking.send(id, "n", 1)
    blocking.send(id, "n", "end")


@app.workflow
def plain_family(count: int) -> list[int]:
    answers: list[int] = blocking.gather(blocking.start_many(kill_app.child, range(count)))
    plain_effect("got all")
    return answers


@app.step(timeout=0.2, retry=Retry(attempts=3, initial=PAUSE, factor=1.0, jitter=0.0))
async def endless() -> None:
    _write("try")
    await asyncio.Event().wait()


@app.step(timeout=0.2, retry=Retry(attempts=3, initial=PAUSE, factor=1.0, jitter=0.0))
def plain_endless() -> None:
    _write("try")
    time.sleep(1.0)


@app.workflow
async def limited() -> int:
    try:
        await endless()
    except shardflow.StepFailed as error:
        return error.attempts if error.type == "shardflow.errors.StepTimeout" else -1
    return 0


@app.workflow
def plain_limited() -> int:
    try:
        plain_endless()
    except shardflow.StepFailed as error:
        return error.attempts
    return 0


@app.workflow(timeout=1.0)
async def overdue() -> None:
    await effect("begun")
    await shardflow.receive("never")


@app.workflow(queue="kids")
async def naughty(n: int) -> int:
    await effect(f"child {n}")
    raise ValueError("no")


@app.workflow
async def guardian() -> str:
    """Has a child that fails, says how, and goes on when it is told to."""
    child, said = await shardflow.start(naughty, 0), "no failure"
    try:
        await child.result()
    except shardflow.WorkflowFailed as error:
        said = await effect_of(f"{error.type}: {error.message}")
    await shardflow.receive("go")
    return said


@app.step
async def effect_of(what: str) -> str:
    _write(what)
    return what


@app.workflow
async def falls(name: str, waits: bool = False) -> None:
    """One of a graph that fails; when it is told to, where it `waits`."""
    if waits:
        await shardflow.receive("go")
    await effect(name)
    raise ValueError("no")


@app.workflow
async def draws() -> str:
    """What differs from run to run, and what is done with it."""
    drawn = f"{shardflow.uuid4()} {shardflow.random()} {shardflow.now().isoformat()}"
    return await effect_of(f"drawn {drawn}")


# -- values

CODECS = Codecs(payload=(Cipher("hidden"),))
CODECS.add(Fraction, encode=str, decode=Fraction)
sealed_app = shardflow.App("sealed", codecs=CODECS)


@dataclass
class Load:
    """Long enough to be compressed."""

    text: str
    share: Fraction


@sealed_app.step
async def bulk(share: Fraction) -> Load:
    _write("bulk")
    return Load("x" * LONG, share)


@sealed_app.step
async def weigh(load: Load) -> Fraction:
    _write(f"{len(load.text)} {load.share}")
    return load.share * 2


@sealed_app.workflow
async def weighs(share: Fraction) -> Fraction:
    return await weigh(await bulk(share))


# -- versions of the code

patched_app, first_app, second_app = (shardflow.App(name) for name in ("patched", "first", "second"))


@app.step
async def closing(what: str) -> None:
    _write(what)


@app.workflow
async def deployed(name: str) -> None:
    """As it was before the deploy."""
    await effect(f"{name} opens")
    await closing(f"{name} closes")
    await effect(f"{name} ends")


@patched_app.workflow(name="deployed")
async def deployed_now(name: str) -> None:
    """As it is since then."""
    await effect(f"{name} opens")
    if shardflow.patched("checked"):
        await effect(f"{name} is checked")
    await closing(f"{name} closes")
    await effect(f"{name} ends")


@first_app.workflow(name="shop", version="1")
async def shop_1(name: str) -> str:
    await effect(f"{name} by 1")
    await closing(f"{name} closes")
    return "1"


@second_app.workflow(name="shop", version="2")
async def shop_2(name: str) -> str:
    await closing(f"{name} by 2")
    return "2"


def deploy(other: shardflow.App) -> None:
    kill_app.app = other


kill_app.MUTANTS |= WIDE_MUTANTS | {
    "patched_code": lambda: deploy(patched_app),
    "version_1": lambda: deploy(first_app),
    "version_2": lambda: deploy(second_app),
    "sealed": lambda: deploy(sealed_app),
}
kill_app.TURNS["ended"] = lambda turn, _, status: any(row[1] == status for row in turn.outcomes)
kill_app.TURNS["heard"] = lambda _, answer, topic: any(row.topic == topic for row in answer.mail)

if __name__ == "__main__":
    kill_app.main()
