"""What the files of a run say of it in its report: jobs, scripts, the teacher that was evaluated."""

import dataclasses
import json
from pathlib import Path

from html_page import Page
from synthetic_runs import make_history, make_verdict

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
