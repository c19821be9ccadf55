"""shardflow: durable workflows on the Postgres servers you already run: one of them, or fifty."""

from __future__ import annotations

from .app import App, Call, Step, Workflow
from .client.aio import AsyncClient
from .client.handle import AsyncHandle
from .client.sync import Client, Handle
from .config import load as load_config
from .core.retry import Retry
from .errors import (
    ClusterError,
    ConfigError,
    InvalidInput,
    InvalidWorkflowId,
    MigrationError,
    NonDeterminism,
    ResultTimeout,
    SerializationError,
    ShardflowError,
    ShardUnavailable,
    StepFailed,
    SubmitUncertain,
    UsageError,
    WorkflowConflict,
    WorkflowFailed,
    WorkflowNotFound,
)
from .inside import Info, info, now, random, uuid4
from .model import (
    RELEASE,
    ClusterConfig,
    LeaseConfig,
    PoolConfig,
    RebalanceConfig,
    ShardConfig,
    Status,
    StepInfo,
    WorkflowInfo,
)
from .worker.worker import Worker

__version__ = RELEASE

__all__ = [
    "App",
    "AsyncClient",
    "AsyncHandle",
    "Call",
    "Client",
    "ClusterConfig",
    "ClusterError",
    "ConfigError",
    "Handle",
    "Info",
    "InvalidInput",
    "InvalidWorkflowId",
    "LeaseConfig",
    "MigrationError",
    "NonDeterminism",
    "PoolConfig",
    "RebalanceConfig",
    "ResultTimeout",
    "Retry",
    "SerializationError",
    "ShardConfig",
    "ShardUnavailable",
    "ShardflowError",
    "Status",
    "Step",
    "StepFailed",
    "StepInfo",
    "SubmitUncertain",
    "UsageError",
    "Worker",
    "Workflow",
    "WorkflowConflict",
    "WorkflowFailed",
    "WorkflowInfo",
    "WorkflowNotFound",
    "info",
    "load_config",
    "now",
    "random",
    "uuid4",
]
