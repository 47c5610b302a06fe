"""The environment of a trial and its stamp."""

import json
import os
import subprocess
import sys

import pytest
import torch

from paperworks.study.environment import environment, stamp
from paperworks.study.errors import UserError


def test_everything_that_may_change_bits_is_told():
    here = environment()
    assert list(here) == [
        "os", "machine", "cpu", "python", "torch", "numpy", "scipy", "scikit-learn", "blas",
        "device", "paperworks",
    ]  # fmt: skip
    assert all(isinstance(value, str) and value.strip() == value != "" for value in here.values())
    assert here["torch"] == torch.__version__
    assert here["python"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert json.loads(json.dumps(here)) == here


def test_stamp_depends_on_all_but_our_own_version():
    here = environment()
    assert stamp(environment()) == stamp(here)
    assert stamp(dict(reversed(here.items()))) == stamp(here)
    for key in here:
        assert (stamp({**here, key: "another"}) == stamp(here)) is (key == "paperworks"), key


def test_the_dictionary_is_the_callers():
    environment()["torch"] = "mine"
    assert environment()["torch"] == torch.__version__


def test_another_process_agrees_but_for_its_processor():
    """Whatever it imported before, under another hash seed; told to use fewer instructions."""
    code = (
        "import json, scipy.linalg; from paperworks.study.environment import environment;"
        "print(json.dumps(environment()))"
    )
    variables = {**os.environ, "ATEN_CPU_CAPABILITY": "default", "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", code]
    there = json.loads(
        subprocess.run(command, env=variables, capture_output=True, check=True).stdout
    )
    here = environment()
    assert there["cpu"] == "DEFAULT"
    assert {**there, "cpu": here["cpu"]} == here
    assert here["cpu"] == "DEFAULT" or stamp(there) != stamp(here)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "mps:7:7", "", "mps"])
def test_device_that_is_not_there(device):
    if device == "mps" and torch.backends.mps.is_available():
        device = "mps:x"
    with pytest.raises(UserError, match="cannot be used here") as caught:
        environment(device)
    assert "\n" not in str(caught.value)


def test_importing_it_is_cheap():
    code = (
        "import sys, paperworks.study.environment;"
        "assert not {'torch', 'numpy', 'scipy', 'sklearn', 'threadpoolctl'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
