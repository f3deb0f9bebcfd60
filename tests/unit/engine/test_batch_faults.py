"""Whatever happens to one member of a batch, the others are served: random cancels and requests whose work fails."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.scheduler.conftest import CheckedPolicy, make_request, make_table
from tetriserve_backend.engine import events as ev
from tetriserve_backend.engine.config import EngineSettings
from tetriserve_backend.engine.core import EngineCore
from tetriserve_backend.engine.ledger import SegmentLedger
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.scheduler.registry import make_policy
from tetriserve_backend.simulator.virtual_world import Outcome, RankFailure, VirtualWorld

WORLD_SIZE = 4
TABLE = make_table({256: (0.1, 0.09, 0.08)}, WORLD_SIZE, pairs={(256, 1): 0.12, (256, 2): 0.1})


class FaultyWorld(VirtualWorld):
    """A virtual world where clients cancel, and where the steps of guilty requests raise from a step on."""

    def __init__(self, core: EngineCore, *, cancels: dict[str, float], guilty: dict[str, int], **options) -> None:
        super().__init__(core, TABLE, WORLD_SIZE, **options)
        self._guilty = guilty
        for request_id, at_s in cancels.items():
            self._push(at_s, ev.RequestCancelled(request_id))

    def _close(self, event: ev.SegmentFinished) -> bool:
        sent = self._running.get(event.segment_id)
        if sent is None or not any(self._raises(part) for part in sent[0].parts):
            return super()._close(event)
        self._raise(event)
        return False

    def _raises(self, part) -> bool:
        return part.num_steps > 0 and part.first_step + part.num_steps > self._guilty.get(part.request_id, 1000)

    def _raise(self, event: ev.SegmentFinished) -> None:
        """As the executor does: what was sent behind for the same requests fails too, and may be tried again."""
        broken: set[str] = set()
        for segment_id in sorted(self._running):
            requests = {part.request_id for part in self._running[segment_id][0].parts}
            if segment_id == event.segment_id or requests & broken:
                broken |= requests
                del self._running[segment_id]
                if segment_id != event.segment_id:
                    self._failed_segments.add(segment_id)
                self._push(event.end_s, ev.SegmentFailed(segment_id, "NaN", segment_id != event.segment_id))
        for request_id in broken:
            self._request_free_s[request_id] = event.end_s


def check_ledger(core: EngineCore, event: ev.Event, now_s: float, commands: list[object]) -> None:
    """Nobody waits for reports that will not come."""
    ledger = core._ledger
    assert isinstance(ledger, SegmentLedger)
    for request_id, state in core._requests.items():
        assert not state.rolling_back or ledger.depth(request_id)


NUM_REQUESTS = 10
IDS = st.sampled_from([f"r{index}" for index in range(NUM_REQUESTS)])


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    gaps_s=st.lists(st.floats(0.0, 0.4), min_size=NUM_REQUESTS, max_size=NUM_REQUESTS),
    num_steps=st.lists(st.integers(1, 20), min_size=NUM_REQUESTS, max_size=NUM_REQUESTS),
    cancels=st.dictionaries(IDS, st.floats(0.0, 5.0), max_size=5),
    guilty=st.dictionaries(IDS, st.integers(0, 12), max_size=2),
    failures=st.lists(st.builds(RankFailure, rank=st.integers(0, 3), at_s=st.floats(0.0, 3.0)), max_size=1),
    policy=st.sampled_from(["tetris", "tetriserve"]),
    lead_s=st.sampled_from([0.0, 0.02, 0.2]),
)
def test_only_who_is_cancelled_or_guilty_is_not_served(gaps_s, num_steps, cancels, guilty, failures, policy, lead_s):
    requests, now_s = [], 0.0
    for index, (gap_s, steps) in enumerate(zip(gaps_s, num_steps, strict=True)):
        now_s += gap_s
        requests.append(make_request(f"r{index}", 256, arrival_s=now_s, slo_s=4.0, num_steps=steps))
    checked = CheckedPolicy(make_policy(SchedulerSettings(policy=policy), TABLE, WORLD_SIZE))
    core = EngineCore(checked, TABLE, WORLD_SIZE, EngineSettings(lead_s=lead_s, max_retries=1))
    world = FaultyWorld(core, cancels=cancels, guilty=guilty, failures=failures, observe=check_ledger)
    outcomes: dict[str, Outcome] = {}
    for outcome in world.run(requests):
        assert outcome.request.request_id not in outcomes
        outcomes[outcome.request.request_id] = outcome
    assert len(outcomes) == NUM_REQUESTS and core.is_idle
    for request in requests:
        expected = {"fail" if guilty.get(request.request_id, 1000) < request.num_steps else "finish"}
        if request.request_id in cancels:
            expected.add("cancel")
        assert outcomes[request.request_id].outcome in expected
