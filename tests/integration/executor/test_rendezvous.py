"""What outlives a world in the store where ranks meet."""

from tetriserve_backend.executor.config import ExecutorSettings
from tetriserve_backend.executor.rendezvous import host_rendezvous
from tetriserve_backend.executor.xdit_executor import XditExecutor


def test_new_world_knows_nothing_of_a_timeout_in_the_one_before() -> None:
    executor = XditExecutor(ExecutorSettings())
    executor._rendezvous = store = host_rendezvous()
    executor.reform_world()
    store.set("exception_dump", "1")
    executor.reform_world()
    assert not store.check(["exception_dump"])
