"""What the engine counts is what Triton shows."""

from types import SimpleNamespace
from typing import ClassVar

import pytest

from tetriserve_backend.engine.metrics import Metric, Sample
from tetriserve_backend.triton_adapter.metrics import TritonMetrics


class FakeFamily:
    """As Triton's: a counter can only grow, and a metric is gone once nobody holds it."""

    COUNTER, GAUGE = "counter", "gauge"
    made: ClassVar["list[FakeFamily]"] = []

    def __init__(self, name, description, kind):
        assert all(family.name != name for family in self.made)
        self.name, self.description, self.kind, self.messages, self.values = name, description, kind, 0, {}
        self.made.append(self)

    def Metric(self, labels):
        assert all(isinstance(text, str) for pair in labels.items() for text in pair)
        return FakeMetric(self, tuple(labels.items()))


class FakeMetric:
    def __init__(self, family, labels):
        self.family, self.labels = family, labels
        family.values[labels] = 0.0

    def __del__(self):
        del self.family.values[self.labels]

    def set(self, value):
        assert self.family.kind == "gauge"
        self.family.messages += 1
        self.family.values[self.labels] = value

    def increment(self, value):
        assert self.family.kind == "counter" and value >= 0
        self.family.messages += 1
        self.family.values[self.labels] += value


@pytest.fixture
def shown(monkeypatch):
    monkeypatch.setattr(FakeFamily, "made", [])
    return TritonMetrics(SimpleNamespace(MetricFamily=FakeFamily))


def gauge(**values):
    return Metric("ratio", "gauge", "r", tuple(Sample((("rank", name),), value) for name, value in values.items()))


def test_values_are_shown_by_labels_and_sent_only_when_they_change(shown):
    shown.publish([gauge(a=1.5, b=1.0)])
    shown.publish([gauge(a=1.5, b=1.2)])
    (family,) = FakeFamily.made
    assert family.values == {(("rank", "a"),): 1.5, (("rank", "b"),): 1.2} and family.messages == 3


def test_a_counter_shows_the_total(shown):
    for total in (0.0, 2.0, 2.0, 5.0):
        shown.publish([Metric("warnings_total", "counter", "w", (Sample((), total),))])
    (family,) = FakeFamily.made
    assert family.values == {(): 5.0} and family.messages == 2


def test_what_is_gone_is_shown_no_more_and_nothing_is_after_the_end(shown):
    shown.publish([gauge(a=1.5, b=1.0)])
    shown.publish([gauge(b=1.0)])
    (family,) = FakeFamily.made
    assert list(family.values) == [(("rank", "b"),)]
    shown.close()
    assert family.values == {}
