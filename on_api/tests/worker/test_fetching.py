"""Pins that must be fetched, on a network of real Kubos."""

from __future__ import annotations

import os
import time

from on_api.core.ipfs.formats.unixfs import build_file
from on_api.core.services.pins.jobs import queue_length
from on_api.core.setting_groups import PinsSettings
from on_api.tests.conftest import DatabaseMaker, Kubo, Server
from on_api.tests.testing.deadline import until
from on_api.tests.testing.network import Peer
from on_api.tests.worker.conftest import MakeSettings, account_of, ended, look, new_cid, pin

MIB = 1024 * 1024


def test_what_another_node_has(
    on_here: MakeSettings, new_database: DatabaseMaker, here: Peer, source: Peer
) -> None:
    """Fetched from its origins, pinned under our name, charged whole and once."""
    data = os.urandom(3 * MIB + 5)
    blocks = {node.cid: node.block for node in build_file(data).walk()}
    cid = source.add(data)
    with Server(on_here(new_database())) as server, account_of(server) as ada:
        pin_id = pin(ada, cid, origins=source.addresses(), name="film")
        seen = ended(ada, pin_id)
        assert seen["status"] == "pinned", seen
        size = sum(map(len, blocks.values()))
        assert seen["info"] == {"dag_size": str(size), "blocks": str(len(blocks))}
        assert here.pins()[cid].split("/")[::2] == ["on-api", pin_id]
        assert all(here.blocks.has(block) for block in blocks)
        pin(ada, cid)
        assert ada.client.get("/v1/users/me/usage").json()["storage"]["bytes"] == size
        # What came from the other node is a meter of its own.
        admin = server.new_user(admin=True)
        with admin.client:
            assert admin.client.get("/v1/node").json()["exchanged"]["received"] >= len(data)
            assert admin.client.get("/v1/traffic").json()["total"]["bytes_in"] == 0


def test_a_source_with_a_hole(
    on_here: MakeSettings, here: Peer, source: Peer, bystander: Peer
) -> None:
    """What came is shown while the rest is waited for; the pin fails at its deadline and says how
    much there was; once the block is back a new request succeeds."""
    data = os.urandom(4 * MIB)
    cid = source.add(data)
    leaf = [node.cid for node in build_file(data).walk()][-1]
    source.blocks.take(leaf)
    settings = on_here(pins=PinsSettings(deadline=6, patience=3, dial_private=True))
    with Server(settings) as server, account_of(server) as ada:
        pin_id = pin(ada, cid, origins=source.addresses())
        until(lambda: look(ada, pin_id)["info"].get("fetched_blocks") == "4", "it is shown")
        assert look(ada, pin_id)["status"] == "pinning"
        seen = ended(ada, pin_id)
        assert seen["status"] == "failed"
        assert "Only 4 blocks" in seen["info"]["status_details"]
        assert "limit of 6 seconds" in seen["info"]["status_details"]
        assert cid not in here.pins()
        assert source.add(data) == cid
        assert ended(ada, pin(ada, cid, origins=source.addresses()))["status"] == "pinned"


def test_what_is_here_in_part(on_here: MakeSettings, here: Peer, source: Peer) -> None:
    """A hole below a root that lies here holds up nothing: what is missing is fetched."""
    data = os.urandom(3 * MIB)
    cid = source.add(data)
    assert here.add(data, pinned=False) == cid
    here.blocks.take([node.cid for node in build_file(data).walk()][2])
    with Server(on_here()) as server, account_of(server) as ada:
        seen = ended(ada, pin(ada, cid, origins=source.addresses()))
        assert (seen["status"], seen["info"]["blocks"]) == ("pinned", "4")


def test_a_source_that_is_away_and_comes_back(
    on_here: MakeSettings, here: Peer, source: Peer, bystander: Peer
) -> None:
    """Failed after the deadline with a clear reason, and no trace of it on the node."""
    cid = source.add(os.urandom(2 * MIB))
    origins = source.addresses()
    source.stop()
    settings = on_here(pins=PinsSettings(deadline=4, patience=1, dial_private=True))
    try:
        with Server(settings) as server, account_of(server) as ada:
            begun = time.monotonic()
            seen = ended(ada, pin(ada, cid, origins=origins))
            assert time.monotonic() - begun > 3
            assert seen["status"] == "failed"
            assert seen["info"]["status_details"] == (
                "No provider of this content could be found. "
                "The time limit of 4 seconds was exceeded."
            )
            assert cid not in here.pins()
            source.start()
            again = pin(ada, cid, origins=source.addresses())
            assert ended(ada, again)["status"] == "pinned"
    finally:
        source.start()


def test_what_nobody_has_holds_up_nobody(
    on_here: MakeSettings, here: Peer, source: Peer, bystander: Peer
) -> None:
    """One user's many pins that can't be found: another user's come through at once, and, as the
    former give up their places in turn, one's own too. Never more at once than set."""
    cids = [source.add(os.urandom(5000)) for _ in range(4)]
    settings = on_here(
        pins=PinsSettings(deadline=120, patience=8, dial_private=True, concurrency=4)
    )
    with (
        Server(settings) as server,
        account_of(server) as ada,
        account_of(server) as ben,
    ):
        hopeless = [pin(ada, new_cid()) for _ in range(7)]
        until(lambda: look(ada, hopeless[0])["status"] == "pinning", "ada's fetches begin")
        begun = time.monotonic()
        for cid in cids[:3]:
            assert ended(ben, pin(ben, cid, origins=source.addresses()))["status"] == "pinned"
        assert time.monotonic() - begun < 16, "ben waited for ada's, two rounds of them"

        def fetched() -> int:
            statuses = [look(ada, pin_id)["status"] for pin_id in hopeless]
            assert statuses.count("pinning") <= 3
            assert statuses.count("failed") == 0
            return statuses.count("pinning")

        until(fetched, "ada's are tried as well")  # between two turns none may be
        assert ended(ada, pin(ada, cids[3], origins=source.addresses()), 90)["status"] == "pinned"


def test_a_deleted_pin_ends_at_the_node(on_here: MakeSettings, bystander: Peer) -> None:
    """While it is fetched: the node is asked no longer, and nothing is left of it."""
    with Server(on_here()) as server, account_of(server) as ada:
        pin_id = pin(ada, new_cid())
        until(lambda: look(ada, pin_id)["status"] == "pinning", "the fetch begins")
        until(lambda: server.count("on_api_fetches_under_way") == 1, "it is under way")
        assert ada.client.delete(f"/v1/pins/{pin_id}").status_code == 202
        assert ada.client.get(f"/v1/pins/{pin_id}").status_code == 404
        until(lambda: b'{call="pin",outcome="ended"} 1.0' in scrape(server), "the node stops")
        until(lambda: no_pin_waits(server), "it is gone")


def test_a_private_node_without_peers(
    settings_for: MakeSettings, sqlite_database: DatabaseMaker, kubo: Kubo
) -> None:
    """Nobody can be asked: failed at once, naming the setting that would help."""
    settings = settings_for(sqlite_database())
    with Server(settings) as server, account_of(server) as ada:
        seen = ended(ada, pin(ada, new_cid()), 10)
        assert seen["status"] == "failed"
        assert "ON_API_NODE__NETWORK=public" in seen["info"]["status_details"]


def test_private_origins_are_not_dialled(
    settings_for: MakeSettings, sqlite_database: DatabaseMaker, kubo: Kubo, source: Peer
) -> None:
    """Unless the operator allows it: the node is used as no probe of the network it stands in."""
    cid = source.add(os.urandom(1000))
    settings = settings_for(sqlite_database())
    with Server(settings) as server, account_of(server) as ada:
        seen = ended(ada, pin(ada, cid, origins=source.addresses()), 10)
        assert seen["status"] == "failed"
        assert "ON_API_PINS__DIAL_PRIVATE" in seen["info"]["status_details"]
        identity = seen["delegates"][0].rpartition("/")[2]
        assert identity not in source.peers()


def no_pin_waits(server: Server) -> bool:
    """Whether the queue is empty."""
    with server.services.database.session_scope(write=False) as session:
        return queue_length(session) == 0


def scrape(server: Server) -> bytes:
    """What Prometheus would see."""
    with server.client() as client:
        return client.get("/metrics").content
