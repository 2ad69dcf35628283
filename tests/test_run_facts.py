"""What the files of a run say of it in its report: jobs, scripts, the teacher that was evaluated."""

import dataclasses
import json
from pathlib import Path

from html_page import Page
from synthetic_runs import make_history, make_records, make_runs, make_spec, make_verdict

from franca.config import to_mapping
from reproduce.report.page import render_report
from reproduce.report.provenance import load_provenance


def test_report_says_what_was_launched_and_evaluated(tmp_path: Path) -> None:
    """Each job with its time and site, the script that sbatch was given last, and the hash of the evaluated teacher."""
    mine = dataclasses.replace(make_history("main"), path=tmp_path, log_path=None)
    launches = [
        {"time": "2026-11-21T12:42:07+00:00", "job": "4711", "site": "slurm"},
        "rubbish",
        {"job": "without time"},
    ]
    (tmp_path / "provenance.json").write_text(json.dumps({"launches": launches}))
    protocol = {"k": [10, 20], "test_images": 360}
    evaluation = {"checkpoint": "eval/x.safetensors", "checkpoint_sha256": "78" * 32, "protocol": protocol}
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    for number, text in (("0001", "#SBATCH --nodes=1\n"), ("0002", "#SBATCH --nodes=2\n")):
        (tmp_path / "submitit" / number).mkdir(parents=True)
        (tmp_path / "submitit" / number / "4711_submission.sh").write_text(text)
    verdict = make_verdict(mine=mine, references=[])
    text = render_report(verdict, mine=mine, provenance=load_provenance(mine))
    page = Page(text)
    assert "2026-11-21T12:42:07+00:00 4711 slurm" in page.text
    assert "without time" not in page.text.partition("What the harness launched")[2].partition("Speed")[0]
    assert "#SBATCH --nodes=2" in page.text
    assert "#SBATCH --nodes=1" not in page.text
    assert "SHA-256 " + "78" * 32 in page.text
    assert "Test images 360" in page.text


def test_short_run_fills_the_figures_that_show_it_alone() -> None:
    """Launches and speed are drawn over the run's own iterations, however far a reference run went."""
    records = make_records(42, stop=400) + make_records(43, start=300, stop=500, first_line=41)
    mine, other = make_history("main", records=records), make_history("long", seed=1)
    text = render_report(make_verdict(mine=mine, references=[other]), mine=mine, references=[other])
    assert "2 launches over 491 iterations" in text
    assert "10 logged lines do not count" in text
    speed = text.partition('id="speed"')[2].partition("</section>")[0]
    assert ">400<" in speed
    assert "k</text>" not in speed


def test_data_seen_again_are_told_with_the_launches() -> None:
    """Where a recipe's data start again on a resume, the section on launches says so, and no other does."""
    mine, references = make_runs()
    verdict = make_verdict(mine=mine, references=references)
    spec = make_spec()
    quirks = dataclasses.replace(spec.recipe.quirks, data_replayed_on_resume=True)
    quirky = dataclasses.replace(spec, recipe=dataclasses.replace(spec.recipe, quirks=quirks))
    again = dataclasses.replace(mine, config={"recipe": to_mapping(quirky.recipe)})
    said = "with the first sample on every resume"
    assert said in render_report(verdict, mine=again, references=references, spec=spec)
    assert said not in render_report(verdict, mine=mine, references=references, spec=spec)
