"""The benchmark of removed channels: what it plans, and what it claims of what it found."""

from tests.support.scripts import script


def test_each_network_is_measured_whole_and_at_every_share() -> None:
    channels = script("channels")
    jobs = channels.plan()
    assert len(set(jobs)) == len(jobs)
    for name, shares in channels.SHARES.items():
        assert {job.share for job in jobs if job.network == name and not job.epochs} == {1.0, *shares}
    trained = {(job.network, job.share) for job in jobs if job.epochs}
    assert trained <= {(name, share) for name, shares in channels.SHARES.items() for share in shares}


def test_claims_are_the_best_speeds_of_networks_that_lost_little_enough() -> None:
    channels = script("channels")
    whole, good, bad = (channels.Job(channels.RESNET, share) for share in (1.0, 0.5, 0.35))
    rest = ["1.0 - 1.1", 10.0]
    found = {
        whole: [100.0, 9, 9, 93.0, 9.0, 1.0, "", 9.0, 1.0, *rest],
        good: [50.0, 5, 5, 92.6, 5.0, 1.6, "", 4.0, 2.1, *rest],
        bad: [35.0, 3, 3, 91.0, 3.0, 3.0, "", 3.0, 3.0, *rest],
    }
    rows = channels.claims(found)
    assert [row[1] for row in rows] == ["1.60", "2.10"]
    assert [row[3] for row in rows] == [False, True]
    assert len(channels.tables(found)["runs"].rows) == 3
