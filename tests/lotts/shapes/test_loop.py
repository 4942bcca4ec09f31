"""The training loop goes on where it stopped, to the same weights."""

import pytest
import torch

from lotts.shapes.loop import Recipe, Worker, fit

WORKER = Worker(0, 1, 0, torch.device("cpu"))
RECIPE = Recipe(images=24, batch_size=2, learning_rate=0.1, warmup=4, save_minutes=0.0)


def trained(folder, stops_after=None):
    torch.manual_seed(0)
    model, calls = torch.nn.Linear(3, 1), []

    def loss(rng, noise):
        calls.append(1)
        if len(calls) == stops_after:
            raise KeyboardInterrupt
        x = torch.from_numpy(rng.normal(size=(2, 3))).float() + 0.1 * torch.randn(2, 3, generator=noise)
        return (model(x) - x.sum(1, keepdim=True)).square().mean(), {}

    return fit(WORKER, model, loss, RECIPE, folder), calls


def test_an_interrupted_run_ends_with_the_weights_of_a_whole_one(tmp_path):
    whole, _ = trained(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", stops_after=6)
    resumed, calls = trained(tmp_path / "cut")
    assert len(calls) == 12 - 5
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert not list((tmp_path / "cut").glob("*.tmp"))


def test_a_finished_run_trains_no_more(tmp_path):
    first, _ = trained(tmp_path)
    again, calls = trained(tmp_path)
    assert not calls
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_the_rate_warms_up_stays_and_falls_to_nothing():
    rates = [RECIPE.rate(seen) for seen in range(0, 25)]
    assert rates[0] == pytest.approx(0.025)
    assert rates[4:18] == [0.1] * 14
    assert rates[21] == pytest.approx(0.05)
    assert rates[24] == 0
