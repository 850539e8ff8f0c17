"""Long lists, in an instance with many files."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path

from sqlalchemy import select

from benchmarks.figures import Figure, in_pairs
from benchmarks.load import Job
from benchmarks.scenarios.registry import Variant, median_time, scenario
from benchmarks.stage import POSTGRESQL, OnApi, Stage
from on_api.core.models import Database, User
from on_api.core.pagination import CursorPage, Position
from on_api.core.services.files.files import FileFilter, files_of
from on_api.tests.conftest import make_settings
from on_api.tests.scale.explain import Recorder
from on_api.tests.scale.seeding import REGULAR, Scale, seed
from on_api.tests.scale.tour import LONG_AGO


@scenario(Variant(POSTGRESQL))
def list_pages(stage: Stage) -> list[Figure]:
    """Measure the last page of a long list beside its first, fifty rows each."""
    sizes = stage.sizes
    # Without a worker: thousands of the seeded pins wait for content that does not exist.
    with stage.on_api(ON_API_WORKER__EMBEDDED="false") as on_api:
        url = on_api.home.extra["ON_API_DATABASE_URL"]
        seed(url, Scale(sizes.files, sizes.users, traffic=0))
        first = Job(f"{on_api.home.url}/v2/files", headers=on_api.headers, count=sizes.pages)
        first = replace(first, contains='"next_cursor"')
        with on_api.home.client(on_api.key) as client:
            page = client.get(first.url).raise_for_status().json()
            second = page["items"][-1]["created_at"]
        pids = on_api.pids
        by_time = replace(first, url=f"{on_api.home.url}/v1/files", contains='"count"')
        behind_first = replace(by_time, url=f"{by_time.url}?before={second}")
        last = replace(first, url=_last_page(on_api, first.url))
        pages = in_pairs(median_time(last, pids), median_time(first, pids), sizes.pairs)
        seconds = in_pairs(median_time(behind_first, pids), median_time(by_time, pids), sizes.pairs)
        milliseconds = _database_time(url, on_api.home.path, sizes.pairs)
    work = f"last page, {sizes.files:,} files"
    return [
        Figure.of(work, "ms", pages, "first page", at_most=1.5),
        Figure(f"{work}: time of the database", "ms", milliseconds, at_most=10),
        Figure.of("second page of v1, counted", "ms", seconds, "first page"),
    ]


def _database_time(url: str, home: Path, count: int) -> list[float]:
    """Return the milliseconds that PostgreSQL itself reports for the last page."""
    database = Database(make_settings(home, url))
    recorder = Recorder(database.engine)
    behind = Position(LONG_AGO, uuid.UUID(int=0))
    with database.session_scope(write=False) as session:
        user = session.scalars(select(User.id).where(User.username.not_like(f"{REGULAR[:-1]}%")))
        user_id = user.one()
        for turn in range(count):
            with recorder.step(str(turn)):
                files_of(session, user_id, FileFilter()).by_cursor(session, CursorPage(50, behind))
    database.dispose()
    return [
        sum(cost.milliseconds for cost in recorder.costs if cost.step == str(turn))
        for turn in range(count)
    ]


def _last_page(on_api: OnApi, first: str) -> str:
    """Return the URL of the last full page, with a cursor from a walk through the whole list."""
    cursors: list[str] = []
    with on_api.home.client(on_api.key) as client:
        query: dict[str, str | int] = {"limit": 50}
        while True:
            page = client.get(first, params=query).raise_for_status().json()
            if page["next_cursor"] is None:
                return f"{first}?cursor={cursors[-1]}"
            cursors.append(page["next_cursor"])
            query = {"limit": 50, "cursor": cursors[-1]}
