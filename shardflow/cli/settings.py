"""What all commands share: where the configuration is, how to log; and the click classes that bring these options.

The options are accepted behind every word of a command line. What is not given there comes from `SHARDFLOW_*`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click

from ..config import load
from ..core.suggest import did_you_mean
from ..errors import ConfigError
from ..model import ClusterConfig, ShardConfig
from . import logs

F = TypeVar("F", bound=Callable[..., Any])

#: Where the configuration is looked for when nobody says.
DEFAULT_FILES = ("config/cluster.yaml", "shardflow.yaml")


@dataclass(slots=True)
class Settings:
    """The options that every command takes. `env` stands for the process's environment."""

    config_file: str | None = None
    log_format: str | None = None
    log_level: str | None = None
    verbose: int = 0
    env: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def path(self) -> Path:
        """The configuration file. Raises ConfigError where none was named and none is in its usual place."""
        named = self.config_file or self.env.get("SHARDFLOW_CONFIG")
        if named:
            return Path(named)
        for name in DEFAULT_FILES:
            if Path(name).is_file():
                return Path(name)
        raise ConfigError(
            f"no configuration: name its file with --config or SHARDFLOW_CONFIG, or put it in {DEFAULT_FILES[0]}"
            " (start from config/cluster.example.yaml); `shardflow dev` makes a cluster to develop with"
        )

    def config(self) -> ClusterConfig:
        """The cluster's configuration. Raises ConfigError."""
        return load(self.path())

    def log(self, *, server: bool = False) -> None:
        """Sets logging up: warnings and above, for a `server` (a worker) also what it does."""
        form = self.log_format or self.env.get("SHARDFLOW_LOG_FORMAT") or "text"
        level = self.log_level or self.env.get("SHARDFLOW_LOG_LEVEL") or ""
        for name, value, known in (("FORMAT", form, logs.FORMATS), ("LEVEL", level or "info", logs.LEVELS)):
            if value.lower() not in known:
                raise ConfigError(
                    f"SHARDFLOW_LOG_{name} must be one of {', '.join(known)}, not {value!r}"
                    f"{did_you_mean(value, known)}"
                )
        logs.configure(form.lower(), level.lower(), verbose=self.verbose, server=server)


def _store(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value and parameter.name is not None:
        setattr(context.ensure_object(Settings), parameter.name, value)


def _shared_options() -> list[click.Parameter]:
    common: dict[str, Any] = {"expose_value": False, "callback": _store}
    return [
        click.Option(
            ["-c", "--config", "config_file"],
            metavar="FILE",
            help=f"The cluster's configuration.  [SHARDFLOW_CONFIG; default: {' or '.join(DEFAULT_FILES)}]",
            **common,
        ),
        click.Option(
            ["--log-format"],
            type=click.Choice(logs.FORMATS),
            help="How to log, on stderr.  [SHARDFLOW_LOG_FORMAT; default: text]",
            **common,
        ),
        click.Option(
            ["--log-level"],
            type=click.Choice(logs.LEVELS, case_sensitive=False),
            help="What to log.  [SHARDFLOW_LOG_LEVEL; default: warning, of workers info]",
            **common,
        ),
        click.Option(["-v", "--verbose"], count=True, help="Log one level more; can be repeated.", **common),
    ]


class Command(click.Command):
    """A command that takes the shared options too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(_shared_options())


class Group(click.Group):
    """A group of such commands, which answers an unknown word with the one that was probably meant."""

    command_class = Command

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(_shared_options())

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            known = self.list_commands(ctx)
            hint = did_you_mean(args[0], known) or f": one of {', '.join(known)}"
            ctx.fail(f"there is no command {args[0]!r}{hint}")
        return super().resolve_command(ctx, args)


pass_settings = click.make_pass_decorator(Settings, ensure=True)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def chosen_shards(config: ClusterConfig, names: tuple[str, ...]) -> list[ShardConfig]:
    """The shards of these names, all where there are none. Raises BadParameter for an unknown name."""
    known = [shard.name for shard in config.shards]
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known) or f": one of {', '.join(known)}"
            raise click.BadParameter(f"no shard is named {name!r}{hint}", param_hint="--shard")
    return [shard for shard in config.shards if not names or shard.name in names]
