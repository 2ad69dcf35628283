"""What a verdict says could not be concluded."""

from simulated_runs import make_history, simulate

from reproduce.verdict import judge


def test_what_references_do_not_reach_is_said() -> None:
    """References that end early leave the rest of a run uncompared, and the verdict says from where on."""
    short = [make_history(simulate(seed), done=200) for seed in range(4)]
    verdict = judge(make_history(simulate(50)), short)
    assert any("What came after iteration 191" in sentence for sentence in verdict.cannot_conclude)
    whole = judge(make_history(simulate(50)), [make_history(simulate(seed)) for seed in range(4)])
    assert not any("came after" in sentence for sentence in whole.cannot_conclude)
