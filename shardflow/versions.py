"""Changes to a workflow's code that runs which are under way survive.

`patched` tells apart, place by place, the runs that were there under the old code and those that were not; with
`version=` of `@app.workflow` runs stay with the workers that have their code.
"""

from __future__ import annotations

from .context import current
from .core.routing import check_name

#: Bytes of a patch's id at the most.
MAX_PATCH = 200


def patched(id: str) -> bool:
    """Whether this run goes the new way: True where it was never behind this place under code without this call.

    if shardflow.patched("fees"):
        cents = await with_fees(cents)

    The answer is recorded, so that every replay gives it again; each call is answered for itself: keep the answer in
    a variable where two places must agree. True in steps and outside of workflows.
    Arguments: `id`, of the patch. When no run is left that went the old way, `deprecate_patch` takes its place.
    """
    check_name("patch", id, MAX_PATCH)
    run = current.get()
    return True if run is None else run.patched(id, False)


def deprecate_patch(id: str) -> None:
    """Stands where `patched` stood when the old way is gone, for runs that have recorded its answer.

    When these have ended too, it can be removed. A run that went the old way ends with NonDeterminism.
    """
    check_name("patch", id, MAX_PATCH)
    run = current.get()
    if run is not None:
        run.patched(id, True)
