"""The command as a shell sees it: what it prints, where, and with which exit code it ends."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from row_copies import copy_rows
from shell import ROOT, command, reproduce, wait_for
from synthetic_runs import make_records

from franca.config import TrainConfig, make_config
from reproduce.runs import newest_job, read_state


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with this one's rows and nothing run yet."""
    return copy_rows(tmp_path)


def test_folder_that_cannot_be_written_is_named(project: Path) -> None:
    """Where reports/ is no folder, the command says so and exits with 2; so does a claim on a key that is none."""
    (project / "reports").touch()
    result = reproduce("report", "franca-L-in21k", project=project)
    assert result.returncode == 2
    assert f"error: {project / 'reports'}: File exists" in result.stderr
    path = project / "experiments" / "digits.yaml"
    path.write_text(path.read_text().replace("recipe_key: data.classes", "recipe_key: data.klasses"))
    result = reproduce("audit", "digits", project=project)
    assert result.returncode == 2
    assert "digits.yaml:41: claims.dataset_classes.recipe_key: the recipe has no key data.klasses" in result.stderr


def test_launch_is_shown_without_being_made(project: Path) -> None:
    """--dry-run prints sbatch's script for the site's nodes and tasks, on any machine, and writes nothing."""
    site = {"nodes": 2, "processes_per_node": 2, "device": "auto", "slurm": {"partition": "long", "cpus_per_task": 3}}
    (project / "site.yaml").write_text(json.dumps({"slurm": site}))
    result = reproduce("run", "digits", "--site", "slurm", "--dry-run", project=project)
    text = result.stdout
    assert "needs what a launch writes into runs/digits@1/main first" in result.stderr
    for line in ("--nodes=2", "--ntasks-per-node=2", "--partition=long", "--cpus-per-task=3", "--signal=USR2@300"):
        assert f"#SBATCH {line}" in text.splitlines()
    assert "runs/digits@1/main/submitit/0001" in text
    assert not (project / "runs").exists()


def test_launch_on_this_machine_is_shown(project: Path) -> None:
    """Without a cluster --dry-run prints the line that starts the trainer, what it needs, and where it stops."""
    text = reproduce("run", "digits", "--site", "local", "--dry-run", "--until", "5%", project=project).stdout
    assert "# trains until iteration 30 of 600; needs what a launch writes into runs/digits@1/main first" in text
    assert f"-m franca.train {project}/runs/digits@1/main/config.yaml" in text
    assert not (project / "runs").exists()


def write_log(path: Path, *, seed: int, stop: int = 600) -> Path:
    lines = [{"iteration": record.iteration, **record.values} for record in make_records(seed, stop=stop, total=600)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_rows_are_listed() -> None:
    """The list names every row, as a table and as JSON."""
    rows = json.loads(reproduce("list", "--json").stdout)
    assert [row["row"] for row in rows] == sorted(
        path.stem for path in (ROOT / "experiments").glob("*.yaml") if path.stem != "sources"
    )
    table = reproduce("list").stdout
    assert all(row["row"] in table and row["title"] in table for row in rows)


def test_list_imports_nothing_slow() -> None:
    """The list answers without torch, Hydra, NumPy, pandas or Matplotlib."""
    script = (
        "import sys; from reproduce.cli import main; sys.argv[1:] = ['list', '--json']\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print({'torch', 'hydra', 'numpy', 'pandas', 'matplotlib', 'submitit', 'jinja2'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "set()"


def test_list_shows_how_far_a_row_came(project: Path) -> None:
    """A row that was run shows its state and its verdict."""
    run = project / "runs" / "digits@1" / "main"
    run.mkdir(parents=True)
    state = {"state": "paused", "iteration": 30, "of": 600, "images_per_second": None, "error": None}
    (run / "state.json").write_text(json.dumps(state))
    (project / "reports").mkdir()
    (project / "reports" / "digits.json").write_text('{"outcome": "on track"}')
    (row,) = [line for line in reproduce("list", project=project).stdout.splitlines() if line.startswith("digits")]
    assert "paused 30/600" in row
    assert "on track" in row
    (run / "state.json").write_text("[]")
    (row,) = [line for line in reproduce("list", project=project).stdout.splitlines() if line.startswith("digits")]
    assert "broken" in row


def test_resolved_row_is_a_configuration() -> None:
    """What --resolved prints as JSON is what the trainer would be given."""
    content = json.loads(reproduce("show", "digits", "--resolved", "--json", "--until", "5%", "--seed", "3").stdout)
    config = make_config(TrainConfig, content)
    assert config.seed == 3
    assert config.execution.until_iteration == config.recipe.iterations * 5 // 100


def test_changed_row_is_shown_as_another_run() -> None:
    """A change of the recipe names the run after it."""
    result = reproduce("show", "digits", "optim.base_lr=0.5", "seed=7")
    assert "run: optim.base_lr=0.5,seed=7" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "digit"), "did you mean digits?"),
        (("show", "digits", "optim.base_lr"), "base_lr"),
        (("show", "digits", "optim.bas_lr=1"), "base_lr"),
        (("show", "digits", "--resolved", "--until", "200%"), "--until"),
        (("show", "digits", "--resolved", "--site", "here"), "site"),
        (("judge", "digits", "seed=12345"), "no run here"),
        (("parse", "missing.txt"), "missing.txt"),
        (("compare", "missing.txt", "missing.txt"), "missing.txt"),
        (("publish", "missing", "target"), "missing"),
        (("fetch", "digits"), "nothing to fetch"),
        (("show", "digits", "--sead", "3"), "--seed"),
        (("evaluate", "digits", "seed=12345"), "nothing is trained yet"),
    ],
)
def test_mistakes_exit_with_2_and_say_what_is_wrong(arguments: tuple[str, ...], said: str) -> None:
    """A user's mistake is a message on stderr that names it; stdout stays empty."""
    result = reproduce(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert said in result.stderr


def test_one_broken_row_hides_no_other(project: Path) -> None:
    """`list` shows the rows that can be read, names the file that cannot and its line, and exits with 2."""
    before = len(json.loads(reproduce("list", "--json", project=project).stdout))
    (project / "experiments" / "franca-L-in21k.yaml").write_text("row: [\n")
    listed = reproduce("list", "--json", project=project)
    assert listed.returncode == 2
    assert len(json.loads(listed.stdout)) == before - 1
    assert "franca-L-in21k.yaml:" in listed.stderr


def test_audit_shows_conflicts(project: Path) -> None:
    """The audit of one row shows its conflicts, and as JSON every finding with its values."""
    assert "conflict" in reproduce("audit", "franca-L-in21k").stdout
    audit = json.loads(reproduce("audit", "franca-L-in21k", "digits", "--json").stdout)
    assert audit.keys() == {"franca-L-in21k@2", "digits@1"}
    states = {finding["field"]: finding["state"] for finding in audit["franca-L-in21k@2"]["findings"]}
    assert states["iterations"] == "conflict"


def test_logs_are_compared_without_a_row(tmp_path: Path) -> None:
    """A run like its references exits with 0 and says so; one far off exits with 1, unless asked to exit with 0."""
    references = [str(write_log(tmp_path / f"{seed}.json", seed=seed)) for seed in range(1, 6)]
    mine = write_log(tmp_path / "mine.json", seed=7)
    verdict = json.loads(reproduce("compare", str(mine), *references, "--json").stdout)
    assert verdict["references"][0]["name"] == "1.json"
    off = tmp_path / "off.json"
    off.write_text(mine.read_text().replace('"lr": ', '"lr": 1'))
    result = reproduce("compare", str(off), *references, "--html", str(tmp_path / "off.html"))
    assert result.returncode == 1
    assert result.stdout.startswith("FAILED")
    assert "off.json" in (tmp_path / "off.html").read_text()
    assert reproduce("compare", str(off), *references, "--exit-zero").returncode == 0


def test_log_is_parsed(tmp_path: Path) -> None:
    """What a log holds is shown, with the place of a line that cannot be read; a file of another kind exits with 3."""
    log = write_log(tmp_path / "log.json", seed=0, stop=100)
    log.write_text(log.read_text() + '{"iteration": 100, "total_\x1b[31mloss')
    result = reproduce("parse", str(log))
    assert result.returncode == 0
    assert "10 records" in result.stdout
    assert f"{log}:11:" in result.stdout
    assert "\x1b" not in result.stdout
    parsed = json.loads(reproduce("parse", str(log), "--json").stdout)
    assert [record["iteration"] for record in parsed["records"]] == list(range(0, 100, 10))
    other = tmp_path / "other.csv"
    other.write_text("a,b,c\n1,2,3\n")
    assert reproduce("parse", str(other)).returncode == 3


def test_row_that_was_never_run_has_a_report(project: Path) -> None:
    """The report of a row without a run is its audit; the index lists every row."""
    result = reproduce("report", "franca-L-in21k", project=project)
    assert result.returncode == 0
    assert result.stdout.splitlines()[-1] == "reports/franca-L-in21k.html  not run yet: the report is an audit"
    assert "franca-G-laion600m" in (project / "reports" / "index.html").read_text()
    assert (project / "reports" / "franca-L-in21k.svg").is_file()


def test_first_part_of_a_row_goes_through_all_phases(project: Path) -> None:
    """`run` trains a prefix, judges it and writes the report; run again, it trains nothing and says the same."""
    first = reproduce("run", "digits", "--until", "11", project=project)
    assert first.returncode in (0, 3), first.stderr
    assert "runs/digits@1/main: paused, 11 of 600 iterations done" in first.stderr
    assert first.stdout.splitlines()[-1] == "reports/digits.html"
    verdict = json.loads((project / "reports" / "digits.json").read_text())
    assert verdict["done"] == 11
    again = reproduce("run", "digits", "--until", "11", project=project)
    assert (again.returncode, again.stdout) == (first.returncode, first.stdout)
    assert "training as job" not in again.stderr
    judged = reproduce("judge", "digits", "--exit-zero", "--json", project=project)
    assert judged.returncode == 0
    assert json.loads(judged.stdout) == verdict


def test_margins_changed_after_the_launch_are_noticed(project: Path) -> None:
    """A verdict by margins that are not those declared before the launch carries a problem that says so."""
    assert reproduce("train", "digits", "--until", "5", project=project).returncode == 0
    assert "margins were changed" not in reproduce("judge", "digits", project=project).stdout
    row = project / "experiments" / "digits.yaml"
    row.write_text(row.read_text().replace("knn_points: 0.5", "knn_points: 5.0"))
    assert "margins were changed" in " ".join(reproduce("judge", "digits", project=project).stdout.split())


@pytest.mark.parametrize(("how", "code"), [("Ctrl-C", 130), ("from outside", 75)])
def test_interrupted_training_exits_with_its_code(project: Path, how: str, code: int) -> None:
    """Ctrl-C ends with 130 and a stop from outside with 75; both say how to go on, and the work is saved."""
    run = project / "runs" / "digits@1" / "main"
    with subprocess.Popen(
        command("train", "digits"), cwd=project, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as harness:
        wait_for(lambda: (state := read_state(run)) is not None and state.iteration > 0)
        job = newest_job(run)
        assert job is not None
        if how == "Ctrl-C":
            os.killpg(harness.pid, signal.SIGINT)
        else:
            job.stop()
        _, said = harness.communicate(timeout=200)
    assert harness.returncode == code
    assert "continue" in said
    assert "Traceback" not in said
    state = read_state(run)
    assert state is not None
    assert (run / "checkpoints" / f"{state.iteration:06d}").is_dir()


def test_reader_that_stops_early_is_no_error() -> None:
    """A pipe that is closed before everything was read ends the command quietly."""
    with subprocess.Popen(
        command("audit"), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_help_documents_the_exit_codes() -> None:
    """The meaning of every exit code stands in the help, of the whole and of each command."""
    for arguments in ((), ("judge",)):
        text = " ".join(reproduce(*arguments, "--help").stdout.split())
        assert all(f" {code} " in text for code in (0, 1, 2, 3, 75, 130))


def test_pipeline_and_lock_are_written(project: Path) -> None:
    """A project without dvc.yaml and lock gets both, equal to this one's."""
    (project / "experiments" / "versions.lock").unlink(missing_ok=True)
    assert "digits@1" in reproduce("lock", project=project).stdout.splitlines()
    assert reproduce("lock", project=project).stdout == ""
    assert reproduce("pipeline", "--write", project=project).returncode == 0
    assert (project / "dvc.yaml").read_text() == (ROOT / "dvc.yaml").read_text()
    assert reproduce("pipeline", project=project).stdout == (ROOT / "dvc.yaml").read_text()
