"""The workdir: the same run goes on, another is refused, and nothing is touched before a run is sure to begin."""

import json
import multiprocessing

import pytest

from afa_jax.errors import UserError
from afa_jax.training.workdir import claim, finished, sign

CONFIG = {"recipe": "afa", "methods": {"ast": {"alpha": 0.1}}, "taps": (1, 2)}


def test_a_new_folder_is_made_and_signed(tmp_path):
    workdir = tmp_path / "deep" / "run"
    with claim(workdir, CONFIG):
        assert not (workdir / "config.json").exists()
        sign(workdir, CONFIG, "a", "")
    with claim(workdir, CONFIG):
        pass
    assert json.loads((workdir / "config.json").read_text())["recipe"] == "afa"
    assert finished(workdir) is None
    for damaged in ("", "{", "[]", "{}"):
        (workdir / "summary.json").write_text(damaged)
        assert finished(workdir) is None
    (workdir / "summary.json").write_text('{"last_top1": 0.5}')
    assert finished(workdir) == {"last_top1": 0.5}


def refuse(workdir, config, match):
    with pytest.raises(UserError, match=match), claim(workdir, config):
        pytest.fail("the workdir was given away")


def test_another_run_is_refused_and_the_difference_named(tmp_path):
    with claim(tmp_path, CONFIG):
        sign(tmp_path, CONFIG, "a", "")
    other = {**CONFIG, "methods": {"ast": {"alpha": 0.2}}, "seed": 1}
    refuse(
        tmp_path, other, r"another run \(methods.ast.alpha is 0.1 there and 0.2 here; seed is None there and 1 here\)"
    )


def test_another_source_network_or_other_images_are_refused(tmp_path):
    with claim(tmp_path, CONFIG):
        sign(tmp_path, CONFIG, "a", "x")
        sign(tmp_path, CONFIG, "a", "x")
        with pytest.raises(UserError, match=r"The source network is not what the run in .* began with: bring that"):
            sign(tmp_path, CONFIG, "b", "x")
        with pytest.raises(UserError, match=r"The images are not what the run in .* began with: bring that"):
            sign(tmp_path, CONFIG, "a", "y")
        sign(tmp_path, CONFIG, "a", "x")


def test_a_damaged_record_of_the_origin_is_told(tmp_path):
    for content in ("{", "[1]"):
        (tmp_path / "origin.json").write_text(content)
        with pytest.raises(UserError, match=r"origin.json is damaged: remove .* and start again"):
            sign(tmp_path, CONFIG, "a", "x")


def test_what_a_kill_left_half_written_is_no_hindrance(tmp_path):
    (tmp_path / "config.partial").touch()
    with claim(tmp_path, CONFIG):
        sign(tmp_path, CONFIG, "a", "")


def test_other_peoples_files_are_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    refuse(tmp_path, CONFIG, r"holds other files \(thesis.tex\) and no run")


def test_a_damaged_config_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{")
    refuse(tmp_path, CONFIG, "is damaged")


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    refuse(tmp_path / "file" / "run", CONFIG, r"cannot be written \(Not a directory\)")


def hold(workdir, ready, release):
    with claim(workdir, CONFIG):
        ready.set()
        release.wait(30)


def test_a_second_process_is_refused_or_waits(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    ready, release = spawn.Event(), spawn.Event()
    process = spawn.Process(target=hold, args=(tmp_path, ready, release))
    process.start()
    assert ready.wait(30)
    refuse(tmp_path, CONFIG, "Another process is at work")
    release.set()
    with claim(tmp_path, CONFIG, wait=True):
        pass
    process.join()
