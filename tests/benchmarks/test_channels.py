"""The benchmark of removed channels: what it plans, and what it claims of what it found."""

from tests.support.scripts import script


def test_each_network_is_measured_whole_and_at_every_share() -> None:
    channels = script("channels")
    jobs = channels.plan()
    assert len(set(jobs)) == len(jobs)
    for name, each in channels.SHARES.items():
        assert channels.Job(name) in jobs
        pruned = {(job.batch, job.share) for job in jobs if job.network == name and job.batch and not job.epochs}
        assert pruned == {(batch, share) for batch, shares in each.items() for share in shares}
    without = {(job.network, job.batch, job.share) for job in jobs if not job.epochs}
    assert {(job.network, job.batch, job.share) for job in jobs if job.epochs} <= without


def test_claims_are_the_best_speeds_of_networks_that_lost_little_enough() -> None:
    channels = script("channels")
    whole, good = channels.Job(channels.RESNET), channels.Job(channels.RESNET, 64, 0.6)
    bad = channels.Job(channels.RESNET, 1, 0.4)
    found = {
        whole: [57, 100.0, 9, 9, 93.0, 9.0, 1.3, 1.0, 9.0, 1.2, 1.0, 0.0],
        good: [57, 50.0, 5, 5, 92.6, 5.0, 1.6, 1.2, 4.0, 2.1, 1.7, 10.0],
        bad: [39, 35.0, 3, 3, 91.0, 3.0, 3.0, 2.0, 3.0, 3.0, 2.0, 10.0],
    }
    rows = channels.claims(found)
    assert [row[1] for row in rows] == ["1.60", "1.20", "2.10", "1.70"]
    assert [row[3] for row in rows] == [False, False, True, False]
    assert len(channels.tables(found)["runs"].rows) == 3


def test_trained_images_are_moved_and_keep_their_shape() -> None:
    import torch

    script("channels")
    from lib.training_data import moved

    images = torch.arange(4 * 3 * 8 * 8, dtype=torch.float32).reshape(4, 3, 8, 8)
    assert moved(images, 2).shape == images.shape
    assert moved(images, 0).sum() == images.sum()
