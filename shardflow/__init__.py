"""shardflow: durable workflows on the Postgres servers you already run: one of them, or fifty."""

from __future__ import annotations

from . import blocking
from .app import App
from .children import ChildHandle, gather, start, start_many
from .client.aio import AsyncClient
from .client.handle import AsyncHandle
from .client.schedules import ScheduleList
from .client.sync import Client, Handle
from .config import load as load_config
from .core.codecs import Codecs
from .core.options import Options
from .core.payload import PayloadCodec
from .core.retry import Retry
from .definitions import Call, Step, Transaction, Workflow
from .errors import (
    ClusterError,
    ConfigError,
    InvalidInput,
    InvalidWorkflowId,
    MigrationError,
    NonDeterminism,
    ResultTimeout,
    ScheduleConflict,
    ScheduleNotFound,
    SerializationError,
    ShardflowError,
    ShardUnavailable,
    StepFailed,
    StepTimeout,
    SubmitUncertain,
    UsageError,
    WorkflowCancelled,
    WorkflowConflict,
    WorkflowDead,
    WorkflowFailed,
    WorkflowNotFound,
    WorkflowTimeout,
)
from .inside import Info, continue_as_new, info, now, random, receive, send, set_event, sleep, sleep_until, uuid4
from .model import (
    RELEASE,
    Bulk,
    ClusterConfig,
    Counts,
    LeaseConfig,
    Page,
    PayloadConfig,
    PoolConfig,
    RebalanceConfig,
    RetentionConfig,
    ScheduleInfo,
    ShardConfig,
    Status,
    StepInfo,
    Waited,
    WorkflowInfo,
)
from .queue import Queue
from .versions import deprecate_patch, patched
from .worker.worker import Worker

__version__ = RELEASE

__all__ = [
    "App",
    "AsyncClient",
    "AsyncHandle",
    "Bulk",
    "Call",
    "ChildHandle",
    "Client",
    "ClusterConfig",
    "ClusterError",
    "Codecs",
    "ConfigError",
    "Counts",
    "Handle",
    "Info",
    "InvalidInput",
    "InvalidWorkflowId",
    "LeaseConfig",
    "MigrationError",
    "NonDeterminism",
    "Options",
    "Page",
    "PayloadCodec",
    "PayloadConfig",
    "PoolConfig",
    "Queue",
    "RebalanceConfig",
    "ResultTimeout",
    "RetentionConfig",
    "Retry",
    "ScheduleConflict",
    "ScheduleInfo",
    "ScheduleList",
    "ScheduleNotFound",
    "SerializationError",
    "ShardConfig",
    "ShardUnavailable",
    "ShardflowError",
    "Status",
    "Step",
    "StepFailed",
    "StepInfo",
    "StepTimeout",
    "SubmitUncertain",
    "Transaction",
    "UsageError",
    "Waited",
    "Worker",
    "Workflow",
    "WorkflowCancelled",
    "WorkflowConflict",
    "WorkflowDead",
    "WorkflowFailed",
    "WorkflowInfo",
    "WorkflowNotFound",
    "WorkflowTimeout",
    "blocking",
    "continue_as_new",
    "deprecate_patch",
    "gather",
    "info",
    "load_config",
    "now",
    "patched",
    "random",
    "receive",
    "send",
    "set_event",
    "sleep",
    "sleep_until",
    "start",
    "start_many",
    "uuid4",
]
