"""The demo's data: two halves that share nothing, and labels that stay with the clients."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import skops.io

from edgepack_cli.demo.data import load_digits_halves, make_releases

OPTIMIZER = "sklearn.neural_network._stochastic_optimizers.AdamOptimizer"


@pytest.fixture(scope="module")
def digits():
    return load_digits_halves(7)


@pytest.fixture(scope="module")
def releases(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("releases")
    return make_releases(digits, folder, control=False, seed=7)


def test_the_halves_share_no_digit_and_lose_none(digits):
    train = {row.tobytes() for row in digits.train_rows}
    device = {row.tobytes() for row in digits.device_rows}
    assert not train & device
    assert len(digits.train_rows) + len(digits.device_rows) == 1797
    assert len(digits.train_rows) == len(digits.train_labels)
    assert abs(len(digits.train_rows) - len(digits.device_rows)) <= 1


def test_pixels_are_scaled_and_classes_shared_evenly(digits):
    for rows in (digits.train_rows, digits.device_rows):
        assert rows.dtype == np.float32
        assert (rows.min(), rows.max()) == (0.0, 1.0)
    shares = [np.bincount(labels, minlength=10)
              for labels in (digits.train_labels, digits.device_labels)]  # fmt: skip
    assert np.abs(shares[0] - shares[1]).max() <= 1


def test_a_seed_decides_the_halves():
    one, same, other = (load_digits_halves(seed) for seed in (1, 1, 2))
    assert np.array_equal(one.device_rows, same.device_rows)
    assert not np.array_equal(one.device_rows, other.device_rows)


def test_labels_are_in_no_file_that_a_device_could_see(digits, releases):
    by_version = {one.version: one for one in releases}
    assert list(by_version) == ["1.0.0", "1.1.0", "1.2.0"]
    assert [one.labelled for one in releases] == [True, True, False]
    with np.load(by_version["1.2.0"].data) as devices:
        assert list(devices) == ["pixels"]
        assert np.array_equal(devices["pixels"], digits.device_rows)
    with np.load(by_version["1.0.0"].data) as labelled:
        assert set(labelled) == {"pixels", "digit"}
        assert np.array_equal(labelled["pixels"], digits.train_rows)


def accuracy(release, digits):
    model = skops.io.load(release.model, trusted=[OPTIMIZER])
    return float((model.predict(digits.device_rows) == digits.device_labels).mean())


def test_two_are_good_and_one_is_bad(digits, releases):
    good, better, bad = (accuracy(one, digits) for one in releases)
    assert min(good, better) > 0.9
    assert bad < 0.8
    assert "0..255" in releases[2].words


def test_the_control_is_good_throughout(digits, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        releases = make_releases(digits, tmp_path, control=True, seed=7)
    assert min(accuracy(one, digits) for one in releases) > 0.9
