"""Degrees in words, and the table of outcomes."""

from dataclasses import replace

from rich.console import Console

from tetriserve_backend.cli.demo_load import check_png
from tetriserve_backend.cli.report import Outcome, describe_degrees, outcome_table
from tetriserve_client import GenerateResult, ImageRequest, ImageResult, SegmentReport, Size


def segments(*degrees: int) -> list[SegmentReport]:
    denoise = [SegmentReport("denoise", degree, tuple(range(degree)), 2, 0.0, 0.1) for degree in degrees]
    return [SegmentReport("encode", 1, (0,), 0, 0.0, 0.1), *denoise, SegmentReport("decode", 1, (0,), 0, 0.0, 0.1)]


def test_runs_of_one_degree_are_counted() -> None:
    assert describe_degrees(segments(1, 2, 2, 2, 1)) == "1 2×3 1"
    assert describe_degrees([]) == ""


def test_guidance_on_ranks_of_its_own_is_a_sum() -> None:
    split = replace(segments(1)[1], cfg_degree=2)
    assert describe_degrees([*segments(2), split, split]) == "2 1+1×2"


def test_table_shows_who_was_late_and_who_failed() -> None:
    metadata = {"deadline_met": False, "total_s": 2.5, "segments": [], "image_index": 0, "num_images": 1}
    in_time, late = ImageResult(b"", {**metadata, "deadline_met": True}, 2.6), ImageResult(b"", metadata, 2.6)
    request = ImageRequest("p", Size(64, 32), steps=4, slo_s=2.0)
    outcomes = [
        Outcome("r0", "gRPC", request, GenerateResult((in_time,), 2.6)),
        Outcome("r1", "HTTP", request, GenerateResult((late,), 2.6)),
        Outcome("r2", "HTTP", request, None, "no server"),
    ]
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(outcome_table(outcomes))
    text = console.export_text()
    assert "3 requests, 1 on time (33%)" in text
    assert [word in text for word in ("64x32", "yes", "late", "no server")] == [True] * 4


def test_image_that_is_no_png_of_the_size_is_told() -> None:
    assert "does not decode" in check_png(b"nonsense", Size(64, 64))
