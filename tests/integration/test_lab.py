"""The servers and clusters of the tests themselves: as real in memory as on a disk, and gone afterwards."""

from __future__ import annotations

import pytest
from support import memory
from support.lab import LEASE, POOL, Lab
from support.look import one, total


@pytest.mark.parametrize("disk", [True, False], ids=["on a disk", "in memory"])
def test_clusters_are_made_wherever_servers_lie(disk: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if disk:
        monkeypatch.setenv("SHARDFLOW_TEST_SERVERS", "disk")
    elif not memory.roomy():
        pytest.skip("there is not enough memory")
    with memory.servers(1, {"shared_buffers": "16MB"}) as servers:
        folder = servers.directory
        assert folder is not None
        assert folder.is_relative_to(memory.SHARED) is not disk
        lab = Lab(servers)
        for _ in range(2):
            config = lab.clone(2, 8, LEASE, POOL)
            assert total(config, "SELECT count(*) FROM slot WHERE state = 'active'") == 8
            assert (one(config, "SHOW fsync"), one(config, "SHOW full_page_writes")) == ("on", "on")
        servers[0].kill()
        servers[0].start()
        assert total(config, "SELECT count(*) FROM slot WHERE state = 'active'") == 8
        lab.drop(config)
        with lab.admin(0) as conn:
            left = "SELECT count(*) FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres'"
            assert conn.execute(left).fetchone() == (4,)  # the template's and the first clone's
    assert not folder.exists()
