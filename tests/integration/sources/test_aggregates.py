"""Worker documents read from a real mongod: completely, with malformed content, and while MongoDB does not answer."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime

import bson
import pytest
from bson import DatetimeMS, Decimal128, Int64, ObjectId
from bson.raw_bson import RawBSONDocument
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure

from exporter.core.errors import SourceError
from exporter.core.settings import WORKER_COLLECTIONS
from exporter.core.workers_settings import ExtraMetric, WorkersSettings
from exporter.demo.mongod import Mongod
from exporter.sources.aggregates import BATCH, Aggregates
from exporter.storage.mongo import NOT_AUTHORIZED, Database, Document, translate
from tests.fixtures.mongo import AuthMongod
from tests.helpers.ports import free_port

DEFAULTS = WorkersSettings()
DISK = ExtraMetric(metric="cml_worker_disk_ratio", field="metrics.disk", help="Disk.")


@asynccontextmanager
async def aggregates(uri: str, reach: float = 10) -> AsyncIterator[Aggregates]:
    client = AsyncMongoClient[Document](uri)
    try:
        yield Aggregates(client.get_default_database("cml"), ["workers"], DEFAULTS, reach=reach)
    finally:
        await client.close()


async def failure(reader: Aggregates) -> SourceError:
    with pytest.raises(SourceError) as caught:
        await reader.read()
    assert caught.value.source == "mongodb"
    assert "\n" not in str(caught.value)
    return caught.value


async def test_an_empty_or_missing_collection_is_an_empty_fleet(database: Database) -> None:
    fleet = await Aggregates(database, ["workers"], DEFAULTS).read()
    assert (fleet.workers, fleet.skipped, fleet.complaints) == ((), {}, ())


async def test_the_date_is_mongodbs_clock_at_the_begin_of_the_read(database: Database) -> None:
    before = time.time()
    fleet = await Aggregates(database, ["workers"], DEFAULTS).read()
    assert int(before) <= fleet.date <= time.time()


async def test_both_generations_arrive_whole_with_the_fields_of_the_settings(database: Database) -> None:
    created = datetime(2026, 1, 31, 12)
    await database["workers"].insert_many(
        [
            {
                "_id": "w1",
                "aws_region": "eu-west-1",
                "cpu_utilization": "45.2",
                "active_labs_count": Int64(3),
                "created_at": created,
            },
            {
                "_id": ObjectId(),
                "state": {
                    "id": "w2",
                    "aws_region": "us-east-1",
                    "cloudwatch_memory_utilization": Decimal128("62.8"),
                    "cml_labs_count": 2.0,
                    "created_at": "2026-01-31T12:00:00Z",
                    "metrics": {"disk": 0.5, "ignored": "x"},
                },
            },
            {"_id": uuid.UUID(int=7).hex, "region_name": "ap-south-1", "metrics": {"cpu": 9}},
        ]
    )
    settings = WorkersSettings(fields={"region": ["region_name"], "cpu": ["metrics.cpu"]}, extra=[DISK])
    fleet = await Aggregates(database, ["workers"], settings).read()
    by_id = {worker.id: worker for worker in fleet.workers}
    assert fleet.complaints == ()
    assert (by_id["w1"].cpu, by_id["w1"].active_labs, by_id["w1"].created_at) == (45.2, 3, 1_769_860_800)
    assert (by_id["w2"].memory, by_id["w2"].active_labs, by_id["w2"].created_at) == (62.8, 2, 1_769_860_800)
    assert by_id["w2"].extra == (("cml_worker_disk_ratio", 0.5),)
    assert (by_id[uuid.UUID(int=7).hex].region, by_id[uuid.UUID(int=7).hex].cpu) == ("ap-south-1", 9)


async def test_a_field_and_a_field_inside_it_can_be_projected_together(database: Database) -> None:
    await database["workers"].insert_one({"_id": "w1", "aws_region": "x", "metrics": {"disk": 1, "cpu": 2}})
    settings = WorkersSettings(fields={"cpu": ["metrics", "metrics.cpu"], "name": ["state"]}, extra=[DISK])
    fleet = await Aggregates(database, ["workers"], settings).read()
    assert fleet.workers[0].extra == (("cml_worker_disk_ratio", 1.0),)


async def test_content_that_drivers_fail_to_decode_costs_one_value_and_not_the_whole_read(database: Database) -> None:
    broken = bson.encode({"_id": "w1", "aws_region": "eu-west-1", "name": "ab?"}).replace(b"ab?", b"ab\xff")
    await database["workers"].insert_many(
        [
            RawBSONDocument(broken),
            {"_id": "w2", "aws_region": "eu-west-1", "created_at": DatetimeMS(2**62)},
            {"_id": "w3", "aws_region": "eu-west-1", "cpu_utilization": bson.Regex("["), "state": bson.DBRef("x", 1)},
            {"_id": "w4", "aws_region": "eu-west-1", "cpu_utilization": 5},
        ]
    )
    fleet = await Aggregates(database, ["workers"], DEFAULTS).read()
    assert [worker.id for worker in fleet.workers] == ["w1", "w2", "w3", "w4"]
    assert fleet.workers[0].name == "ab\ufffd"
    assert fleet.workers[3].cpu == 5
    assert len(fleet.complaints) == 2


async def test_a_fleet_of_many_batches_is_read_completely_and_leaves_the_loop_free(database: Database) -> None:
    count = 2 * BATCH + 1
    documents = [
        {
            "_id": f"w{n}",
            "state": {"aws_region": "eu-west-1", "status": "RUNNING", "cpu_utilization": n % 100, "blob": "x" * 500},
        }
        for n in range(count)
    ]
    await database["workers"].insert_many(documents)
    read = asyncio.create_task(Aggregates(database, ["workers"], DEFAULTS).read())
    turns = 0
    while not read.done():
        await asyncio.sleep(0.01)
        turns += 1
    fleet = await read
    assert {worker.id for worker in fleet.workers} == {document["_id"] for document in documents}
    assert turns >= 3


async def test_a_server_that_is_down_is_named_with_what_to_do() -> None:
    port = free_port()
    async with aggregates(f"mongodb://127.0.0.1:{port}/cml", reach=0.3) as reader:
        error = await failure(reader)
    assert error.code == "ServerSelectionTimeoutError"
    assert f"127.0.0.1:{port} refuses connections" in str(error)
    assert "Topology Description" not in str(error)
    assert str(error).endswith("; check mongodb.uri and the server")


async def test_a_server_that_goes_down_later_fails_that_read_and_not_the_next_one(own_mongod: Mongod) -> None:
    async with aggregates(own_mongod.uri, reach=1) as reader:
        assert (await reader.read()).workers == ()
        own_mongod.kill()
        assert (await failure(reader)).code in ("AutoReconnect", "ServerSelectionTimeoutError")
        own_mongod.start()
        assert (await reader.read()).workers == ()


async def test_a_wrong_password_is_reported_without_repeating_it(mongo_auth: AuthMongod) -> None:
    async with aggregates(mongo_auth.uri("root", "hunter2", "admin")) as reader:
        error = await failure(reader)
    assert error.code == "AuthenticationFailed"
    assert "hunter2" not in str(error)
    assert str(error).startswith("MongoDB refuses the credentials (")
    assert str(error).endswith("; check user, password and authSource in mongodb.uri")


async def test_a_missing_privilege_is_named(mongo_auth: AuthMongod) -> None:
    name = f"cml_{uuid.uuid4().hex[:8]}"
    privileges: list[Document] = [{"resource": {"db": name, "collection": "other"}, "actions": ["find"]}]
    async with aggregates(mongo_auth.user(name, privileges)) as reader:
        error = await failure(reader)
    assert error.code == "Unauthorized"
    assert str(error) == str(translate(OperationFailure("", NOT_AUTHORIZED), f"{name}.workers", "find"))
    assert f"`find` on {name}.workers" in str(error)


async def test_find_on_the_collection_is_all_it_takes(mongo_auth: AuthMongod) -> None:
    name = f"cml_{uuid.uuid4().hex[:8]}"
    privileges: list[Document] = [{"resource": {"db": name, "collection": "workers"}, "actions": ["find"]}]
    async with aggregates(mongo_auth.user(name, privileges)) as reader:
        assert (await reader.read()).workers == ()


async def test_missing_credentials_are_reported_as_a_missing_privilege(mongo_auth: AuthMongod) -> None:
    async with aggregates(f"mongodb://127.0.0.1:{mongo_auth.mongod.port}/cml?directConnection=true") as reader:
        assert (await failure(reader)).code == "Unauthorized"


# -- which collection --------------------------------------------------------------------------------------------------

BOTH = WORKER_COLLECTIONS


def document(worker_id: str) -> Document:
    return {"_id": worker_id, "aws_region": "eu-west-1", "aws_instance_id": "i-0000000a", "status": "running"}


async def test_the_first_collection_that_holds_documents_is_used_and_kept(database: Database) -> None:
    reader = Aggregates(database, BOTH, DEFAULTS)
    fleet = await reader.read()
    assert (fleet.workers, fleet.complaints) == ((), ())
    assert fleet.namespace == f"{database.name}.workers or {database.name}.cml_workers"
    await database["cml_workers"].insert_one(document("w1"))
    fleet = await reader.read()
    assert [worker.id for worker in fleet.workers] == ["w1"]
    assert fleet.namespace == f"{database.name}.cml_workers"
    await database["workers"].insert_one(document("w2"))  # another program's: the fleet must not change under the history
    assert [worker.id for worker in (await reader.read()).workers] == ["w1"]
    await database["cml_workers"].delete_many({})
    assert (await reader.read()).workers == ()


async def test_both_collections_with_documents_mean_the_first(database: Database) -> None:
    await database["workers"].insert_one(document("w1"))
    await database["cml_workers"].insert_one(document("w2"))
    reader = Aggregates(database, BOTH, DEFAULTS)
    fleet = await reader.read()
    assert ([worker.id for worker in fleet.workers], fleet.namespace) == (["w1"], f"{database.name}.workers")
    assert fleet.complaints == (
        f"{database.name}.cml_workers also holds documents and is not read, because {database.name}.workers is searched first; "
        "set mongodb.workers to the collection of the manager",
    )
    assert (await reader.read()).complaints == (), "once is enough for the log"
    assert (await Aggregates(database, ["cml_workers"], DEFAULTS).read()).complaints == ()


async def test_where_the_named_collection_is_empty_the_one_that_holds_workers_is_named(database: Database) -> None:
    await database["lab_records"].insert_many([{"_id": n, "name": "lab", "status": "running"} for n in range(5)])
    await database["worker_metrics_inventory"].insert_one(document("w0"))
    reader = Aggregates(database, ["machines"], DEFAULTS)
    assert (await reader.read()).complaints == ()
    await database["cml_workers"].insert_one(document("w1"))
    assert (await reader.read()).complaints == (
        f"{database.name}.machines holds no worker document, but {database.name}.cml_workers does; "
        "set mongodb.workers to cml_workers",
    )


async def test_a_role_for_only_one_of_the_collections_is_enough(mongo_auth: AuthMongod) -> None:
    name = f"test_{uuid.uuid4().hex}"
    role = [{"resource": {"db": name, "collection": "cml_workers"}, "actions": ["find", "insert"]}]
    async with AsyncMongoClient[Document](mongo_auth.user(name, role)) as client:
        reader = Aggregates(client[name], BOTH, DEFAULTS)
        fleet = await reader.read()
        assert fleet.workers == ()
        (complaint,) = fleet.complaints
        assert f"`find` on {name}.workers" in complaint
        await client[name]["cml_workers"].insert_one(document("w1"))
        assert [worker.id for worker in (await reader.read()).workers] == ["w1"]
    async with AsyncMongoClient[Document](mongo_auth.user(name, [], name="nothing")) as client:
        error = await failure(Aggregates(client[name], BOTH, DEFAULTS))
    assert f"`find` on {name}.workers" in str(error)
