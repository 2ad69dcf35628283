"""L3 to L5 on runs with a known truth: what is absolute, the losses in their bands, k-NN and its intervals."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from simulated_runs import (
    ITERATIONS,
    RECIPE,
    changed_recipe,
    make_history,
    make_records,
    simulate,
    with_columns,
    write_run,
)
from synthetic_runs import make_spec

from reproduce.checks import Check
from reproduce.curves import LOSSES
from reproduce.layers.ceilings import check_absolute, uniform_losses
from reproduce.layers.knn import check_knn, make_knn_band
from reproduce.layers.losses import check_losses, make_loss_bands, render_bands
from reproduce.layers.results import make_knn_results, make_loss_results
from reproduce.lineage import History, load_history, make_lineage

LOGS = Path(__file__).parents[2] / "shared" / "logs" / "dinov2"
REFERENCES = [make_history(simulate(seed)) for seed in range(10)]


def by_id(checks: tuple[Check, ...]) -> dict[str, Check]:
    return {check.id: check for check in checks}


def test_healthy_run_passes_what_is_absolute() -> None:
    """Finite, not uniform, every loss moving."""
    checks = check_absolute(make_history(simulate(50)), references=REFERENCES)
    assert [check.state for check in checks] == ["pass"] * 3


def test_non_finite_values_fail(tmp_path: Path) -> None:
    """An infinite loss fails at its first line; one that a launch was given up for is a warning."""
    truth = simulate(50)
    broken = with_columns(truth, koleo_loss=lambda values: np.where(np.arange(len(values)) >= 303, np.inf, values))
    check = check_absolute(make_history(broken), references=())[0]
    assert (check.state, check.iteration, check.value) == ("fail", 320, 29.0)
    records = make_records(broken, stop=400)
    records += make_records(truth, start=200, first_line=len(records) + 1)
    check = check_absolute(dataclasses.replace(make_history(truth), lineage=make_lineage(records)), references=())[0]
    assert check.state == "warn"


def test_infinite_average_is_a_warning() -> None:
    """A mean since process start that is infinite says that some iteration between the lines was."""
    path = LOGS / "seven-launches-inf.log.txt"
    if not path.exists():
        pytest.skip(f"the public log {path} is not here")
    check = check_absolute(load_history(path), references=())[0]
    assert check.state in ("warn", "fail")
    assert check.evidence or "given up" in check.finding


def test_failed_run_fails() -> None:
    """A run that says of itself that it failed, failed, whatever its lines say."""
    state = {"state": "failed", "error": {"type": "NonFiniteError", "message": "iteration 7: koleo_loss not finite"}}
    check = check_absolute(dataclasses.replace(make_history(simulate(50)), state=state), references=())[0]
    assert check.state == "fail"
    assert "koleo_loss not finite" in check.finding


def test_uniform_losses_of_the_public_recipe() -> None:
    """65,536 prototypes, eight local crops, half the images masked: the values of the derivation."""
    path = LOGS / "sibling-1.log.txt"
    if not path.exists():
        pytest.skip(f"the public log {path} is not here")
    assert uniform_losses(load_history(path)) == pytest.approx(
        {"dino_local_crops_loss": 9.8581, "dino_global_crops_loss": 1.2323, "ibot_loss": 2.7726}, abs=5e-5
    )


def test_uniform_losses_sum_over_nesting_levels() -> None:
    """A nested head's ceiling is the sum of those of its levels."""
    recipe = changed_recipe(heads={"nesting": [12, 24, 48]})
    ceilings = uniform_losses(make_history(simulate(0, recipe=recipe)))
    levels = math.log(16) + math.log(32) + math.log(64)
    assert ceilings["dino_local_crops_loss"] == pytest.approx(levels * 8 / 10)
    assert ceilings["dino_global_crops_loss"] == pytest.approx(levels * 2 / 10)
    assert ceilings["ibot_loss"] == pytest.approx(levels / 4)


def test_collapse_is_found_where_it_begins() -> None:
    """A loss that goes to its uniform value and stays fails at the first such line; one that starts there may leave."""
    ceiling = uniform_losses(REFERENCES[0])["dino_local_crops_loss"]
    collapsed = with_columns(
        simulate(50), dino_local_crops_loss=lambda values: np.where(np.arange(len(values)) >= 200, ceiling, values)
    )
    check = check_absolute(make_history(collapsed), references=REFERENCES)[1]
    assert check.state == "fail"
    assert check.iteration == 210
    twins = [make_history(collapsed)]
    assert check_absolute(make_history(collapsed), references=twins)[1].state == "warn"
    late = with_columns(
        simulate(50), dino_local_crops_loss=lambda values: np.where(np.arange(len(values)) < 130, ceiling, values)
    )
    assert check_absolute(make_history(late), references=())[1].state == "pass"


def test_loss_that_stands_or_is_missing_fails() -> None:
    """A loss column of zeros, or none, fails, unless the recipe turns that loss off."""
    off = with_columns(simulate(50), koleo_loss=np.zeros_like)
    check = check_absolute(make_history(off), references=REFERENCES)[2]
    assert (check.state, check.value) == ("fail", 1.0)
    assert "koleo_loss does not move" in check.finding
    records = [
        dataclasses.replace(record, values={k: v for k, v in record.values.items() if "koleo" not in k})
        for record in make_records(off)
    ]
    without = dataclasses.replace(make_history(off), lineage=make_lineage(records))
    assert "koleo_loss is not logged" in check_absolute(without, references=REFERENCES)[2].finding
    by_recipe = dataclasses.replace(off, recipe=changed_recipe(losses={"koleo_weight": 0.0}))
    assert check_absolute(make_history(by_recipe), references=REFERENCES)[2].state == "pass"


def loss_checks(mine: History, references: list[History]) -> dict[str, Check]:
    bands = make_loss_bands(mine, references=references, total=ITERATIONS, alpha=0.005)
    return by_id(check_losses(mine, bands=bands))


def test_another_seed_stays_in_the_band() -> None:
    """One more run of the recipe leaves no band."""
    checks = loss_checks(make_history(simulate(50)), REFERENCES)
    assert set(checks) == {f"band-{metric}" for metric in LOSSES}
    assert {check.state for check in checks.values()} == {"pass"}


def test_drifting_loss_leaves_the_band(tmp_path: Path) -> None:
    """A loss that drifts away fails from the block on where the spread no longer explains it, and quotes both lines."""
    runs = [load_history(write_run(simulate(seed), tmp_path / f"seed-{seed}")) for seed in range(5)]
    mine = load_history(write_run(simulate(50, shift={"ibot_loss": 0.2}), tmp_path / "mine"))
    checks = loss_checks(mine, runs)
    assert {key for key, check in checks.items() if check.state == "fail"} == {"band-ibot_loss"}
    check = checks["band-ibot_loss"]
    assert check.value is not None
    assert check.limit is not None
    assert check.value > check.limit
    assert Path(check.evidence[0].source).parent.name == "mine"
    assert f'"iteration": {check.iteration}' in check.evidence[0].text


def test_one_statistic_for_all(tmp_path: Path) -> None:
    """A text log is compared by its exact means, and where it has none, everybody's medians are taken."""
    folder = write_run(simulate(50), tmp_path / "mine")
    (folder / "training_metrics.json").unlink()
    bands = make_loss_bands(load_history(folder), references=REFERENCES, total=None, alpha=0.005)
    assert bands is not None
    assert bands.statistic == "global average"
    mine = make_history(simulate(50))
    plain = [
        dataclasses.replace(record, values={k: v for k, v in record.values.items() if not k.startswith("mean_")})
        for record in mine.lineage.records
    ]
    bands = make_loss_bands(
        dataclasses.replace(mine, lineage=make_lineage(plain)), references=REFERENCES, total=None, alpha=0.005
    )
    assert bands is not None
    assert bands.statistic == "median-20"
    assert {check.state for check in check_losses(mine, bands=bands)} == {"pass"}


def test_koleo_is_left_out_where_its_batch_differs() -> None:
    """KoLeo of another batch per process is another loss, and that is said: of logs whose recipe does not say among
    how many images it looked, or says another number."""
    mine = make_history(with_columns(simulate(50), current_batch_size=lambda values: values / 2))
    hidden = dataclasses.replace(mine, config=None)
    other = dataclasses.replace(
        mine, config=make_history(simulate(50, recipe=changed_recipe(losses={"koleo_images": 4}))).config
    )
    for run, compared in ((mine, True), (hidden, False), (other, False)):
        bands = make_loss_bands(run, references=REFERENCES, total=ITERATIONS, alpha=0.005)
        assert bands is not None
        assert ("koleo_loss" in bands.metrics) is compared
        assert ("koleo_loss is not compared" in bands.left_out) is not compared


def test_truncated_reference_is_left_out() -> None:
    """References that stopped early do not cut the comparison short while three others go on."""
    short = [make_history(simulate(seed), done=100) for seed in (11, 12)]
    bands = make_loss_bands(make_history(simulate(50)), references=[*REFERENCES, *short], total=ITERATIONS, alpha=0.005)
    assert bands is not None
    assert len(bands.runs) == 10
    assert np.isfinite(bands.z[:, -1]).all()


def test_bands_as_drawn_are_those_that_were_tested() -> None:
    """Mine is outside lower and upper exactly where |z| is beyond the critical value; blocks count iterations done."""
    mine = make_history(simulate(50, shift={"ibot_loss": 0.3}), done=400)
    bands = make_loss_bands(mine, references=REFERENCES, total=ITERATIONS, alpha=0.005)
    assert bands is not None
    for band in render_bands(bands):
        assert band.ends[-1] == ITERATIONS
        assert band.references == 10
        for value, lower, upper, z in zip(band.mine, band.lower, band.upper, band.z, strict=True):
            assert lower is not None
            assert upper is not None
            if value is None:
                assert z is None
            else:
                assert z is not None
                assert (abs(z) > band.critical) == (not lower <= value <= upper)


def test_nothing_in_common_gives_no_band() -> None:
    """No references, no lines, or references without the losses: nothing is claimed."""
    mine = make_history(simulate(50))
    empty = make_history(simulate(51), done=0)
    assert make_loss_bands(mine, references=[], total=ITERATIONS, alpha=0.005) is None
    assert make_loss_bands(mine, references=[empty], total=ITERATIONS, alpha=0.005) is None
    assert make_loss_bands(empty, references=REFERENCES, total=ITERATIONS, alpha=0.005) is None
    assert check_losses(mine, bands=None) == ()
    assert make_loss_results(None, margin_relative=0.01) == ()


def knn_check(mine: History, references: list[History]) -> Check:
    (check,) = check_knn(make_knn_band(mine, references=references, alpha=0.0025), mine=mine, margin=0.5)
    return check


def test_knn_of_another_seed_passes_and_a_lower_one_fails() -> None:
    """The accuracies of one more run lie in the band; three points less do not."""
    assert knn_check(make_history(simulate(50)), REFERENCES).state == "pass"
    check = knn_check(make_history(simulate(50, knn_shift=-3.0)), REFERENCES)
    assert (check.state, check.iteration) == ("fail", 0)
    assert "eval/untrained" in check.evidence[0].source


def test_significant_but_small_difference_is_a_warning() -> None:
    """Runs that hardly differ make a tiny deviation significant; surely within the margin, it only warns."""
    alike = [dataclasses.replace(run, knn={600: {10: 90.0 + 0.01 * place}}) for place, run in enumerate(REFERENCES)]
    mine = dataclasses.replace(REFERENCES[0], knn={600: {10: 90.3}})
    assert knn_check(mine, alike).state == "warn"
    (result,) = make_knn_results(
        mine,
        references=alike,
        band=make_knn_band(mine, references=alike, alpha=0.0025),
        spec=None,
        margin=0.5,
        alpha=0.0025,
    )
    assert result.state == "reproduced"


def test_spread_of_one_reference_is_assumed_and_never_fails() -> None:
    """One run cannot show how far seeds lie apart: a difference warns, and says that the spread is assumed."""
    check = knn_check(make_history(simulate(50, knn_shift=-30.0)), REFERENCES[:1])
    assert check.state == "warn"
    assert "assumed" in check.cannot_say


def test_knn_interval_by_hand() -> None:
    """Mean, difference and the 90 % t-interval of the last evaluation, by their formulas."""
    mine = make_history(simulate(50))
    band = make_knn_band(mine, references=REFERENCES, alpha=0.0025)
    (result,) = make_knn_results(mine, references=REFERENCES, band=band, spec=None, margin=0.5, alpha=0.0025)
    values = [run.knn[600][10] for run in REFERENCES]
    spread = max(
        np.var(values, ddof=1), np.mean([np.var([r.knn[at][10] for r in REFERENCES], ddof=1) for at in (500, 600)])
    )
    reach = 1.8331 * math.sqrt(spread * 1.1)
    assert result.difference == pytest.approx(mine.knn[600][10] - np.mean(values))
    assert result.high == pytest.approx(result.difference + reach, abs=1e-3)
    assert result.references == pytest.approx(values)


def test_published_value_decides_where_no_run_can() -> None:
    """Without reference runs the last accuracy is held against the published one, its spread assumed."""
    spec = make_spec(recipe=RECIPE)
    assert spec.metrics[0].target == 97.1
    for accuracy, state in ((97.1, "consistent"), (80.0, "worse")):
        mine = dataclasses.replace(make_history(simulate(50)), knn={600: {10: accuracy}}, test_images=360)
        (result,) = make_knn_results(mine, references=(), band=None, spec=spec, margin=0.5, alpha=0.0025)
        assert (result.state, result.target, result.basis) == (state, 97.1, "published value")
        assert "assumed" in result.note
    early = dataclasses.replace(make_history(simulate(50), done=300), knn={300: {10: 50.0}})
    (result,) = make_knn_results(early, references=(), band=None, spec=spec, margin=0.5, alpha=0.0025)
    assert result.state == "unknown"
