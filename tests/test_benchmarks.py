"""The benchmarks' cases at small sizes, which pytest-benchmark times on request; the harness."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import bench_import, peers, readme
from benchmarks.harness import (
    Case,
    Clock,
    Effort,
    Peaks,
    Peer,
    Row,
    Setting,
    Spread,
    Work,
    ends,
    examine,
    pair,
    paired_ratio,
    smooth_flow,
    textured_frames,
)

CPU = torch.device("cpu")
SMALL = Setting(CPU, ("cpu",), side=48, frames=4)
EFFORT = Effort(rounds=2, least=2, seconds=0.0, turn_ms=0.1)


@pytest.fixture(scope="module")
def small_cases() -> list[Case]:
    return [
        case
        for stage in command.STAGES
        if stage != "import"
        for case in command.cases(stage, SMALL)
    ]


def labels() -> list[str]:
    """One id for each case that the stages make."""
    tracked = ["trajectories", "median_filter"]
    described = ["hog", "hof", "mbh", "trajectory_hog"]
    flows = ["optical_flow-0", "optical_flow-1", "optical_flow-2"]
    tokens = ["patch_norm-0", "patch_norm-1", "MotionTargets"]
    steps = ["pre-training step-0", "pre-training step-1"]
    return [*tracked, *described, *tokens, *flows, "camera_motion", *steps, "testing views"]


def test_every_case_has_a_test(small_cases: list[Case]) -> None:
    assert [case.operation for case in small_cases] == [re.sub(r"-\d$", "", n) for n in labels()]


@pytest.mark.parametrize("index", range(len(labels())), ids=labels())
def test_case(index: int, small_cases: list[Case], benchmark: Any) -> None:
    """Ours is right, every peer agrees, and pytest-benchmark can time it."""
    case = small_cases[index]
    result = case.run()
    case.check(result)
    for peer in case.peers:
        peer.agree(result, peer.run())
    benchmark(case.run)


def test_pretraining_is_left_out_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said, and nothing else fails; nor is it imported for another stage."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    setting = dataclasses.replace(SMALL, left_out=[])
    assert not list(command.cases("pretraining", setting))
    assert "pre-training step: needs timm and transformers" in setting.left_out[0]
    assert list(command.cases("patch_norm", setting))


def test_peers_agree_with_each_other() -> None:
    """The forms of a recipe give one result."""
    flow = smooth_flow(2, 6, 32, CPU)
    flow[0, 0, :, 3, 3] = 50.0
    assert torch.equal(peers.unfold_median(flow), peers.network_median(flow))
    seeds = torch.tensor([[4.0, 4.0], [12.0, 28.0], [31.0, 0.5]])
    steps = torch.arange(6).view(2, 3)
    whole = peers.torch_tracks(flow, seeds, steps, 20.0)
    windows = peers.torch_window_tracks(flow, seeds, steps, 20.0)
    for one, other in zip(whole, windows, strict=True):
        assert torch.equal(one, other)
    opencv = peers.opencv_tracks(flow[1].numpy(), seeds.numpy(), steps.numpy(), 20.0)
    for one, other in zip(whole, opencv, strict=True):
        assert torch.equal(one[1], torch.from_numpy(other))
    threaded = peers.opencv_tracks(flow[1].numpy(), seeds.numpy(), steps.numpy(), 20.0, threads=2)
    assert (threaded[0] == opencv[0]).all()


def test_flow_is_exact_along_tracks() -> None:
    """What the peers' comparison rests on: sums in float32 equal those in float64."""
    flow = smooth_flow(1, 6, 16, CPU)
    assert torch.equal((flow * 64).round(), flow * 64)
    assert not (torch.signbit(flow) & (flow == 0)).any()
    assert torch.equal(flow.cumsum(1).double(), flow.double().cumsum(1))
    assert not torch.equal(*smooth_flow(2, 6, 16, CPU))
    assert textured_frames(2, 3, 16, CPU).float().std() > 10


def test_ratio_is_of_neighbouring_turns() -> None:
    """A phase that slows both sides leaves the ratio as it is; one odd round moves no median."""
    ratio = paired_ratio([1.0, 1.0, 10.0, 1.0, 1.0], [12.0, 12.0, 120.0, 12.0, 60.0])
    assert (ratio.median, ratio.low, ratio.high) == (12.0, 12.0, 12.0)
    for ours, theirs in (([1.0], [1.0, 2.0]), ([], [])):
        with pytest.raises(ValueError, match="must be as many"):
            paired_ratio(ours, theirs)


def test_spread_is_median_and_quartiles() -> None:
    assert Spread.of([5.0, 1.0, 2.0, 3.0, 4.0]) == Spread(3.0, 2.0, 4.0)


def test_turns_alternate() -> None:
    """A/B/A/B after the warm-up, as often as asked."""
    order: list[str] = []

    def called(name: str) -> Callable[[], None]:
        def run() -> None:
            order.append(name)
            time.sleep(0.002)

        return run

    effort = Effort(rounds=3, least=3, seconds=0.0, turn_ms=0.1)
    ours, theirs = pair(Clock(CPU), called("a"), called("b"), effort)
    assert len(ours) == len(theirs) == 3
    warm = 4  # two calls of each
    assert "".join(order[warm:]) == "bbaa" * 3  # an uncounted call, then one that counts
    assert min(ours + theirs) >= 2.0


def case_of(check: Callable[[Any], None], **changes: Any) -> Case:
    peer = Peer("peer", lambda: time.sleep(0.004), lambda a, b: None, required=2.0)
    case = Case("stage", "op", "case", "cpu", lambda: time.sleep(0.001), check, (peer,))
    return dataclasses.replace(case, **changes)


def run_case(case: Case) -> list[Row]:
    clock = Clock(CPU)
    return list(examine(case, clock, Peaks(clock, EFFORT), EFFORT))


def test_a_failing_operation_is_not_timed() -> None:
    def wrong(result: Any) -> None:
        raise AssertionError("values differ\n\nby much")

    timed: list[int] = []
    (row,) = run_case(case_of(wrong, peers=(Peer("p", lambda: timed.append(1), wrong),)))
    assert not row.passed
    assert not timed
    assert row.error == "AssertionError: values differ by much"
    assert row.ours_ms is None
    assert row.ratio is None
    assert "FAILED" in readme.cells(row.as_dict())[3]


def test_an_operation_that_raises_is_a_failure() -> None:
    def broken() -> None:
        raise RuntimeError("no such kernel")

    (row,) = run_case(case_of(lambda result: None, run=broken))
    assert not row.passed
    assert row.error == "RuntimeError: no such kernel"


def test_a_peer_that_disagrees_is_not_compared() -> None:
    def differ(ours: Any, theirs: Any) -> None:
        raise AssertionError("another result")

    good = Peer("good", lambda: time.sleep(0.004), lambda a, b: None, required=100.0)
    bad, right = run_case(case_of(lambda r: None, peers=(Peer("bad", lambda: 1, differ), good)))
    assert not bad.passed
    assert bad.ratio is None
    assert right.passed
    assert right.ratio is not None
    assert 1.5 < right.ratio.median < 10
    assert right.met is False  # a loss is a row like any other
    assert "(short)" in readme.cells(right.as_dict())[5]


def test_scale_multiplies_the_peer() -> None:
    once, scaled = (
        Peer("p", lambda: time.sleep(0.002), lambda a, b: None, scale=scale)
        for scale in (1.0, 50.0)
    )
    first, second = run_case(case_of(lambda r: None, peers=(once, scaled)))
    assert first.ratio is not None
    assert second.ratio is not None
    assert second.ratio.median > 20 * first.ratio.median


def test_floor_is_the_larger_of_memory_and_compute() -> None:
    peaks = Peaks(Clock(CPU), EFFORT)
    peaks._bandwidth[20] = {"copy": 1e9, "sum": 2e9}
    peaks._operations = 1e9
    assert peaks.limit(Work(5e5, 5e5, 0.0, "")) == (pytest.approx(0.5), "memory")
    assert peaks.limit(Work(5e5, 5e5, 2e6, "")) == (pytest.approx(2.0), "compute")


def test_peaks_are_measured() -> None:
    torch_threads = torch.get_num_threads()
    peaks = Peaks(Clock(CPU), EFFORT)
    limit, by = peaks.limit(Work(1e5, 1e5, 1e5, "little"))
    assert 0 < limit < 100
    assert by in ("memory", "compute")
    assert set(peaks.as_dict()["bandwidth_gb_s"]["1048576"]) == {"copy", "triad", "sum"}
    assert torch.get_num_threads() == torch_threads


def test_ends_of_a_batch() -> None:
    batch = torch.arange(5)
    assert ends(batch).tolist() == [0, 4]
    assert ends(batch[:2]).tolist() == [0, 1]


def test_import_row() -> None:
    row = bench_import.row([1700.0, 1710.0, 1740.0], [1500.0, 1610.0, 1500.0])
    assert row.extra_ms is not None
    assert row.extra_ms.median == 200.0
    assert row.met is True
    assert readme.cells(row.as_dict())[5:7] == ["+0.20 s [+0.15–+0.22]", "+0.2 s"]
    assert bench_import.import_ms("json") > 0
    with pytest.raises(RuntimeError, match="no_such_module"):
        bench_import.import_ms("no_such_module")


def test_command_writes_one_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every key that readers rely on; the exit status tells of failures."""
    monkeypatch.setattr(command, "make_setting", lambda device, quick: SMALL)
    monkeypatch.setattr(Effort, "quick", classmethod(lambda cls: EFFORT))
    threads = torch.get_num_threads()
    try:
        assert (
            command.main(["patch_norm", "--quick", "--threads", "1", "--out", str(tmp_path)]) == 0
        )
    finally:
        command.set_threads(threads)
    (path,) = tmp_path.glob("cpu_*.json")
    report = json.loads(path.read_text())
    assert set(report) == {"schema", "meta", "peaks", "rows", "facts"}
    known = {"commit", "dirty", "date", "device", "driver", "threads", "isa", "versions", "quick"}
    assert known <= set(report["meta"])
    assert {"python", "torch", "numpy", "opencv"} <= set(report["meta"]["versions"])
    assert [row["case"] for row in report["rows"]] == [
        "patch norm (patch) of 18 patches at 48x48",
        "patch norm (coordinate) of 18 patches at 48x48",
    ]
    fields = {field.name for field in dataclasses.fields(Row)}
    for row in report["rows"]:
        assert set(row) == fields
        assert row["passed"]
        assert row["distance"] == pytest.approx(row["ours_ms"]["median"] / row["limit_ms"])
        assert {"read", "written", "operations", "how"} == set(row["work"])


def test_command_fails_where_a_check_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(result: Any) -> None:
        raise AssertionError("wrong")

    def broken(stage: str, setting: Setting) -> Any:
        yield case_of(wrong)
        raise RuntimeError("cannot be made")

    monkeypatch.setattr(command, "cases", broken)
    monkeypatch.setattr(command, "set_threads", lambda count: None)
    assert command.main(["targets", "--quick", "--out", str(tmp_path)]) == 1
    output = capsys.readouterr()
    assert "FAILED" in output.out
    assert "2 FAILED" in output.err
    (path,) = tmp_path.glob("*.json")
    assert [row["passed"] for row in json.loads(path.read_text())["rows"]] == [False, False]


def test_an_alias_names_several_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    facts = {"accuracy": [{"of": "ours", "floor": "cpu", "error_px": {"Venus": 0.25}}]}
    monkeypatch.setattr(command, "cases", lambda stage, setting: asked.append(stage) or ())
    monkeypatch.setattr(command, "facts", lambda stage, setting: facts)
    monkeypatch.setattr(command, "set_threads", lambda count: None)
    assert command.main(["flow", "--quick", "--out", str(tmp_path)]) == 1  # for want of rows
    assert asked == ["optical_flow", "camera_motion"]
    assert ".250" in capsys.readouterr().out
    (path,) = tmp_path.glob("*.json")
    assert json.loads(path.read_text())["facts"] == facts


@pytest.mark.parametrize("wrong", [["nonsense"], ["--threads", "0"], ["--device", "tpu"]])
def test_command_names_what_is_wrong(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(wrong)
    assert wrong[-1] in capsys.readouterr().err


def result_file(
    folder: Path, name: str, rows: list[Row], facts: dict[str, Any] | None = None, **meta: Any
) -> None:
    base = {
        "date": "2024-01-01T00:00:00+00:00",
        "commit": "0123456789abcdef",
        "dirty": False,
        "device": "A Processor",
        "kind": "cpu",
        "threads": 2,
        "isa": "avx2",
        "quick": False,
    }
    run = {"schema": 1, "meta": {**base, **meta}, "rows": [row.as_dict() for row in rows]}
    (folder / name).write_text(json.dumps(run if facts is None else {**run, "facts": facts}))


def timed(operation: str, floor: str, passed: bool = True, ms: float = 2.0) -> Row:
    row = Row("stage", operation, f"{operation} case", floor, "peer", passed)
    if passed:
        row.ours_ms, row.peer_ms = Spread(ms, 1.0, 3.0), Spread(8.0, 8.0, 8.0)
        row.ratio, row.note, row.distance, row.limited_by = Spread(4, 4, 4), "why", 2.0, "memory"
    else:
        row.error = "wrong"
    return row


BLANK = """# Title
<!-- speed:begin -->
<!-- speed:end -->
text
<!-- support:begin --><!-- support:end -->
<!-- accuracy:begin -->old<!-- accuracy:end -->
<!-- solver:begin -->older<!-- solver:end -->
<!-- headlines:begin --><!-- headlines:end -->
"""


def test_readme_is_filled_between_markers(tmp_path: Path) -> None:
    """Again gives the same; what stands outside stays."""
    result_file(tmp_path, "a.json", [timed("hog", "cpu")])
    once = readme.render(BLANK, tmp_path)
    assert readme.render(once, tmp_path) == once
    assert once.startswith("# Title\n<!-- speed:begin -->\n")
    assert "\n<!-- speed:end -->\ntext\n<!-- support:begin -->\n" in once
    assert "| hog case | cpu | peer | 2.00 [1.00–3.00] | 8.00 [8.00–8.00] | 4.00x" in once
    assert "hog case (cpu, 2.00 times its limit): why." in once
    assert "**A Processor**, 2 threads, avx2" in once
    assert "commit 012345678" in once


@pytest.mark.parametrize(
    "text",
    [
        "none",
        BLANK + BLANK,
        BLANK.replace("speed:end", "x"),
        "<!-- speed:end --><!-- speed:begin -->",
    ],
)
def test_readme_needs_its_markers(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"(headlines|speed):(begin|end)"):
        readme.render(text, tmp_path)


def test_support_says_what_has_run_on_a_gpu(tmp_path: Path) -> None:
    """Only passing rows of a full run on a GPU verify, and all rows of the operation must pass."""
    rows = [
        timed("hog", "cuda"),
        timed("mbh", "cuda"),
        timed("mbh", "cuda", passed=False),
        timed("patch_norm", "triton"),
    ]
    rows[2].case = "another"
    result_file(tmp_path, "gpu.json", rows, kind="cuda", device="A GPU", commit="fedcba9876543210")
    result_file(tmp_path, "q.json", [timed("hof", "cuda")], kind="cuda", device="A GPU", quick=True)
    lines = {
        line.split("|")[1].strip(" `"): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in readme.support(readme.load(tmp_path)).splitlines()
    }
    on_gpu = "verified on A GPU (fedcba987)"
    assert lines["operation"] == ["reference", "cpu", "triton", "cuda"]
    assert lines["hog"][3] == on_gpu
    assert lines["patch_norm"][2] == on_gpu
    assert lines["mbh"][3] == "compiled only; not yet run on a GPU"
    assert lines["hof"][3] == "compiled only; not yet run on a GPU"
    assert lines["hog"][:3] == [
        "tested in CI",
        "tested in CI",
        "interpreter only; not yet run on a GPU",
    ]
    assert lines["optical_flow"] == lines["hof"]
    assert lines["camera_motion"][2:] == [readme.BATCHED] * 2


def test_newest_result_counts(tmp_path: Path) -> None:
    """A later failure is not hidden by an older success, of the same device."""
    result_file(tmp_path, "a.json", [timed("hog", "cpu", ms=9.0), timed("hof", "cpu")])
    late = {"date": "2024-02-01T00:00:00+00:00"}
    result_file(tmp_path, "b.json", [timed("hog", "cpu", ms=5.0)], **late)
    failed = timed("hof", "cpu", passed=False)
    failed.peer = None
    result_file(tmp_path, "c.json", [failed], date="2024-03-01T00:00:00+00:00")
    result_file(tmp_path, "d.json", [timed("hof", "cpu")], device="Another", **late)
    found = {(r["operation"], r["meta"]["device"]): r for r in readme.load(tmp_path)}
    assert len(readme.load(tmp_path)) == 3
    assert found["hog", "A Processor"]["ours_ms"]["median"] == 5.0
    assert not found["hof", "A Processor"]["passed"]
    assert found["hof", "Another"]["passed"]


def test_readme_shows_the_newest_facts(tmp_path: Path) -> None:
    """What no run has stays; a later run without facts takes none away."""

    def table(error: float) -> dict[str, Any]:
        return {"accuracy": [{"of": "ours", "floor": "cpu", "error_px": {"Venus": error}}]}

    result_file(tmp_path, "a.json", [], facts=table(0.25))
    result_file(tmp_path, "b.json", [], facts=table(0.5), date="2024-02-01T00:00:00+00:00")
    result_file(tmp_path, "c.json", [], date="2024-03-01T00:00:00+00:00")
    made = readme.render(BLANK, tmp_path)
    assert "| ours | .500 |" in made
    assert "b.json" in made
    assert ".250" not in made
    assert "<!-- solver:begin -->older<!-- solver:end -->" in made


def test_other_schemas_are_refused(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text('{"schema": 0}')
    with pytest.raises(ValueError, match=r"old\.json: schema is 0; must be 1"):
        readme.load(tmp_path)


def test_check_tells_without_changing(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(BLANK)
    given = ["--readme", str(path), "--results", str(tmp_path)]
    assert readme.main([*given, "--check"]) == 1
    assert path.read_text() == BLANK
    assert readme.main(given) == 0
    assert readme.main([*given, "--check"]) == 0


def test_committed_readme_shows_committed_results() -> None:
    assert readme.main(["--check"]) == 0
