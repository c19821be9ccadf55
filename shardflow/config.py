"""The cluster's configuration, from YAML to a `ClusterConfig` that is valid throughout.

Whatever is wrong fails with the file, the path inside it and what to write instead; secrets come from the
environment as `${VAR}` and appear in no message.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from shardflow.core.redact import redact_dsn
from shardflow.core.suggest import did_you_mean
from shardflow.errors import ConfigError
from shardflow.model import (
    NEVER,
    ClusterConfig,
    LeaseConfig,
    PayloadConfig,
    PoolConfig,
    RebalanceConfig,
    RetentionConfig,
    ShardConfig,
)

MAX_SLOTS = 65_536
_KEYS = ("name", "slots", "shards", "lease", "pool", "rebalance", "payload", "retention")
#: Bytes that a payload's limits may be set to. A worker holds many payloads at once, and a server takes a message
#: of less than 1 GB.
MIN_PAYLOAD, MAX_PAYLOAD = 1 << 10, 128 << 20

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_DSN = re.compile(r"postgres(?:ql)?://.*|.*\w\s*=.*", re.DOTALL)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB|kB|MB)")
_BYTES = {"B": 1, "kB": 1000, "KiB": 1 << 10, "MB": 1_000_000, "MiB": 1 << 20}
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_VARIABLE = re.compile(r"\$(?:(\$)|\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}|(\{))")

_T = TypeVar("_T")


def load(path: str | Path, env: Mapping[str, str] | None = None) -> ClusterConfig:
    """Read the configuration file at `path`; `env` is what `${VAR}` is looked up in (None: the process's).

    Raises `ConfigError` for a file that cannot be read, is no YAML, or does not describe a cluster.
    """
    source = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{source}: there is no such file: copy config/cluster.example.yaml to it, or name another with "
            "--config or SHARDFLOW_CONFIG"
        ) from None
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError:
        raise ConfigError(f"{source}: is not UTF-8 text") from None
    try:
        data = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        # Not the error's own text, which quotes the line, and so maybe a password.
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"{source}: {where}{error.problem or 'not valid YAML'}") from None
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"{source}: is not valid YAML: a character or a value in it is not allowed") from None
    return parse(data, source, env)


def parse(data: object, source: str, env: Mapping[str, str] | None = None) -> ClusterConfig:
    """Check what YAML gave, and make the `ClusterConfig` of it.

    `source` stands in front of every message; `env` as for `load`. Raises `ConfigError`.
    """
    reader = _Reader(source, os.environ if env is None else env)
    top = reader.section(data, "", _KEYS)
    name = top.get("name", reader.name)
    slots = top.get("slots", reader.integer(1, MAX_SLOTS), 1024)
    shards = _shards(reader, top)
    return ClusterConfig(
        name=name,
        shards=shards,
        slots=slots,
        lease=_lease(top),
        pool=_pool(top),
        rebalance=_rebalance(top),
        payload=_payload(top),
        retention=_retention(top),
    )


def _shards(reader: _Reader, top: _Section) -> tuple[ShardConfig, ...]:
    raw = top.get("shards", lambda path, value: value)
    if not isinstance(raw, list) or not raw:
        raise reader.error("shards", "must be a list of at least one shard: - {name: ..., dsn: ...}")
    shards: list[ShardConfig] = []
    names: dict[str, str] = {}
    places: dict[tuple[str, str], str] = {}
    for i, item in enumerate(raw):
        path = f"shards[{i}]"
        section = reader.section(item, path, ("name", "dsn", "schema", "weight", "pooler", "labels"))
        shard = ShardConfig(
            name=section.get("name", reader.name),
            dsn=section.get("dsn", reader.dsn),
            schema=section.get("schema", reader.schema, "shardflow"),
            weight=section.get("weight", reader.weight, 1.0),
            pooler=section.get("pooler", reader.boolean, False),
            labels=section.get("labels", reader.names, ()),
        )
        if shard.name in names:
            raise reader.error(f"{path}.name", f"{shard.name!r} is the name of {names[shard.name]} already")
        place = (shard.dsn, shard.schema)
        if place in places:
            raise reader.error(
                path,
                f"has the dsn and schema of {places[place]}: a shard is one schema on one server, so give it "
                "another schema",
            )
        names[shard.name] = places[place] = path
        shards.append(shard)
    if not any(shard.weight > 0 for shard in shards):
        raise reader.error("shards", "every weight is 0: give at least one shard a weight above 0")
    return tuple(shards)


def _lease(top: _Section) -> LeaseConfig:
    default = LeaseConfig()
    section = top.section("lease", ("ttl", "renew", "watch"))
    reader = section.reader
    ttl = section.get("ttl", reader.duration, default.ttl)
    lease = LeaseConfig(
        ttl=ttl,
        renew=section.get("renew", reader.duration, min(default.renew, ttl / 4)),
        watch=section.get("watch", reader.duration, min(default.watch, ttl / 4)),
    )
    if lease.renew >= ttl / 2:
        raise reader.error(
            "lease.renew",
            f"must be less than half of ttl ({ttl:g} s), so that one renewal may fail: {ttl / 4:g}",
        )
    if lease.watch > ttl:
        raise reader.error("lease.watch", f"must not be more than ttl ({ttl:g} s)")
    return lease


def _rebalance(top: _Section) -> RebalanceConfig:
    default = RebalanceConfig()
    section = top.section("rebalance", ("min_group", "max_group", "interval", "cooldown", "moves"))
    reader = section.reader
    most = section.get("max_group", reader.integer(1, 10_000), default.max_group)
    found = RebalanceConfig(
        min_group=section.get("min_group", reader.integer(1, 10_000), min(default.min_group, most)),
        max_group=most,
        interval=section.get("interval", reader.duration, default.interval),
        cooldown=section.get("cooldown", reader.duration, default.cooldown),
        moves=section.get("moves", reader.integer(1, 10_000), default.moves),
    )
    if found.max_group < found.min_group:
        raise reader.error("rebalance.max_group", f"is {most}, less than min_group ({found.min_group})")
    return found


def _pool(top: _Section) -> PoolConfig:
    default = PoolConfig()
    section = top.section("pool", ("min_size", "max_size", "timeout", "connect_timeout"))
    reader = section.reader
    pool = PoolConfig(
        min_size=section.get("min_size", reader.integer(0, 10_000), default.min_size),
        max_size=section.get("max_size", reader.integer(1, 10_000), default.max_size),
        timeout=section.get("timeout", reader.duration, default.timeout),
        connect_timeout=section.get("connect_timeout", reader.duration, default.connect_timeout),
    )
    if pool.max_size < pool.min_size:
        raise reader.error("pool.max_size", f"is {pool.max_size}, less than min_size ({pool.min_size})")
    return pool


def _payload(top: _Section) -> PayloadConfig:
    default = PayloadConfig()
    section = top.section("payload", ("max_size", "max_decoded", "compress_above"))
    reader = section.reader
    size = section.get("max_size", reader.size, default.max_size)
    payload = PayloadConfig(
        max_size=size,
        max_decoded=section.get("max_decoded", reader.size, max(default.max_decoded, size)),
        compress_above=section.get("compress_above", reader.size_or_never, default.compress_above),
    )
    if payload.max_decoded < size:
        raise reader.error("payload.max_decoded", f"is {payload.max_decoded:,}, less than max_size ({size:,})")
    return payload


def _retention(top: _Section) -> RetentionConfig:
    kinds = ("succeeded", "failed", "cancelled", "dead")
    section = top.section("retention", kinds)
    ages = {kind: section.get(kind, section.reader.duration_or_never, math.inf) for kind in kinds}
    return RetentionConfig(**{kind: age for kind, age in ages.items() if age < math.inf})


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice, where YAML's own rule would drop the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f'the key "{key.value}" is given twice', key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Reader:
    """Values out of raw YAML; every method takes the path of the value, for the message, and the value."""

    def __init__(self, source: str, env: Mapping[str, str]) -> None:
        self._source = source
        self._env = env

    def error(self, path: str, problem: str) -> ConfigError:
        return ConfigError(f"{self._source}: {path}: {problem}" if path else f"{self._source}: {problem}")

    def section(self, value: object, path: str, known: tuple[str, ...]) -> _Section:
        if not isinstance(value, dict):
            raise self.error(path, f"must be a mapping with the keys {', '.join(known)}, {_found(value)}")
        for key in value:
            if key not in known:
                hint = did_you_mean(str(key), known) or f" (known: {', '.join(known)})"
                raise self.error(_join(path, str(key)), f"unknown key{hint}")
        return _Section(self, path, value)

    def text(self, path: str, value: object) -> str:
        if not isinstance(value, str):
            raise self.error(path, f"must be text, {_found(value)}: put it in quotes")
        return self._expanded(path, value)

    def name(self, path: str, value: object) -> str:
        text = self.text(path, value)
        if not _NAME.fullmatch(text):
            raise self.error(
                path, f"must be 1 to 63 letters, digits, '_', '.' or '-', the first no sign, {_found(value)}"
            )
        return text

    def names(self, path: str, value: object) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise self.error(path, f"must be a list of names, {_found(value)}")
        return tuple(self.name(f"{path}[{i}]", item) for i, item in enumerate(value))

    def schema(self, path: str, value: object) -> str:
        text = self.text(path, value)
        if not _SCHEMA.fullmatch(text) or text.startswith("pg_") or text == "information_schema":
            raise self.error(
                path,
                "must be a schema name of 1 to 63 lower-case letters, digits or '_', the first no digit, "
                f"that does not begin with pg_, {_found(value)}",
            )
        return text

    def dsn(self, path: str, value: object) -> str:
        if not isinstance(value, str):
            raise self.error(path, "must be text: postgresql://user@host/database, or host=... dbname=...")
        text = self._expanded(path, value)
        if not _DSN.fullmatch(text) or "\0" in text:
            raise self.error(
                path, "must be a connection string: postgresql://user@host/database, or host=... dbname=..."
            )
        return text

    def boolean(self, path: str, value: object) -> bool:
        found = self._retyped(path, value)
        if not isinstance(found, bool):
            raise self.error(path, f"must be true or false, {_found(value)}")
        return found

    def integer(self, least: int, most: int) -> Callable[[str, object], int]:
        def read(path: str, value: object) -> int:
            found = self._retyped(path, value)
            if not isinstance(found, int) or isinstance(found, bool) or not least <= found <= most:
                raise self.error(path, f"must be an integer from {least} to {most}, {_found(value)}")
            return found

        return read

    def weight(self, path: str, value: object) -> float:
        found = self._retyped(path, value)
        if not _is_number(found) or found < 0:
            raise self.error(path, f"must be a number of at least 0, {_found(value)}")
        return float(found)

    def duration(self, path: str, value: object) -> float:
        found = self._retyped(path, value)
        if isinstance(found, str):
            match = _DURATION.fullmatch(found.strip())
            found = float(match[1]) * _UNITS[match[2]] if match else None
        if not _is_number(found) or found <= 0:
            raise self.error(path, f'must be seconds above 0, or text such as "10s", "500ms", "2m", {_found(value)}')
        return float(found)

    def size(self, path: str, value: object) -> int:
        found = self._retyped(path, value)
        if isinstance(found, str):
            match = _SIZE.fullmatch(found.strip())
            found = int(float(match[1]) * _BYTES[match[2]]) if match else None
        if not isinstance(found, int) or isinstance(found, bool) or not MIN_PAYLOAD <= found <= MAX_PAYLOAD:
            raise self.error(
                path,
                f'must be bytes, or text such as "512KiB", "8MiB", from {MIN_PAYLOAD:,} to {MAX_PAYLOAD:,}, '
                f"{_found(value)}",
            )
        return found

    def size_or_never(self, path: str, value: object) -> int:
        return NEVER if self._retyped(path, value) == "never" else self.size(path, value)

    def duration_or_never(self, path: str, value: object) -> float:
        return math.inf if self._retyped(path, value) == "never" else self.duration(path, value)

    def _retyped(self, path: str, value: object) -> Any:
        """A value where text with a variable in it counts as what it would be had it been written out."""
        if not isinstance(value, str) or "$" not in value:
            return value
        text = self._expanded(path, value)
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            return text

    def _expanded(self, path: str, text: str) -> str:
        def replace(match: re.Match[str]) -> str:
            dollar, variable, default, unclosed = match.groups()
            if dollar:
                return "$"
            if unclosed:
                raise self.error(path, "has a ${ that is no ${VAR} or ${VAR:-default}: write $${ for a literal ${")
            found = self._env.get(variable)
            if default is not None:
                return found or default
            if found is None:
                raise self.error(
                    path,
                    f"the environment variable {variable} is not set: set it or use ${{{variable}:-default}}",
                )
            return found

        return _VARIABLE.sub(replace, text)


class _Section:
    """A mapping of the configuration whose keys are all known."""

    def __init__(self, reader: _Reader, path: str, values: dict[str, object]) -> None:
        self.reader = reader
        self._path = path
        self._values = values

    def get(self, key: str, read: Callable[[str, object], _T], default: _T | None = None) -> _T:
        path = _join(self._path, key)
        if key in self._values:
            return read(path, self._values[key])
        if default is None:
            raise self.reader.error(path, "is missing")
        return default

    def section(self, key: str, known: tuple[str, ...]) -> _Section:
        """A section inside this one; left out, or left empty, it has no keys."""
        found = self._values.get(key)
        return self.reader.section({} if found is None else found, _join(self._path, key), known)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _found(value: object) -> str:
    """What was written, as it was written: with its variables, not with what they stand for."""
    if value is None:
        return "and is empty"
    if isinstance(value, (dict, list)):
        return f"not a {'mapping' if isinstance(value, dict) else 'list'}"
    return f"not {redact_dsn(str(value))!r}" if isinstance(value, str) else f"not {value!r}"
