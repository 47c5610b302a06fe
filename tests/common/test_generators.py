import pytest
import torch
from torch import nn
from torch.distributions import Gamma

from paperworks.common import following


def draws():
    gamma = Gamma(torch.tensor(2.0), torch.tensor(1.0))
    return torch.cat([gamma.sample((3,)), nn.Linear(3, 1).weight[0].detach(), torch.rand(1)])


def test_draws_follow_the_generator_and_the_global_one_is_untouched():
    generator = torch.Generator().manual_seed(0)
    before = torch.random.get_rng_state()
    with following(generator):
        first = draws()
    with following(generator):
        second = draws()
    with following(torch.Generator().manual_seed(0)):
        again = draws()
    assert torch.equal(first, again)
    assert not torch.equal(first, second)  # the generator went on
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_global_generator_comes_back_after_an_error():
    before = torch.random.get_rng_state()
    with pytest.raises(RuntimeError), following(torch.Generator().manual_seed(0)):
        torch.rand(5) @ torch.rand(4)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_without_a_generator_the_global_one_goes_on():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = torch.rand(4)
        torch.manual_seed(3)
        with following(None):
            assert torch.equal(torch.rand(4), expected)
