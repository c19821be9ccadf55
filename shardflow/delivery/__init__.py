"""Brings what belongs to a workflow to the shard that its id belongs to: submissions, messages, what follows from
ends."""

from .delivery import Delivery

__all__ = ["Delivery"]
