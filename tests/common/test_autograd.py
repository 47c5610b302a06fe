import pytest
import torch

from paperworks.common.autograd import straight_through


def test_value_is_hard_bit_for_bit_where_the_usual_trick_is_not():
    soft = torch.tensor([1e-3, 0.1, 3e7], requires_grad=True)
    hard = torch.tensor([1e8, 0.7, 0.1])
    assert torch.equal(straight_through(soft, hard), hard)
    assert not torch.equal(soft + (hard - soft).detach(), hard)


def test_gradient_goes_to_soft_alone_whatever_hard_depends_on():
    soft = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    hard = torch.zeros(3, 4, requires_grad=True)
    upstream = torch.arange(12.0).reshape(3, 4)
    straight_through(soft, hard * 2).backward(upstream)
    assert torch.equal(soft.grad, upstream)
    assert hard.grad is None


def test_second_order_is_that_of_what_follows():
    x = torch.tensor(1.6, requires_grad=True)
    (first,) = torch.autograd.grad(straight_through(x, x.round()) ** 3, x, create_graph=True)
    (second,) = torch.autograd.grad(first, x)
    assert first.item() == 3 * 2.0**2  # at the rounded value
    assert second.item() == 6 * 2.0


def test_forward_mode_and_vmap():
    x = torch.tensor([0.3, 1.6])
    tangent = torch.tensor([2.0, -1.0])

    def rounded(x):
        return straight_through(x, x.round())

    value, derivative = torch.func.jvp(rounded, (x,), (tangent,))
    assert torch.equal(value, x.round())
    assert torch.equal(derivative, tangent)
    slopes = torch.func.vmap(torch.func.grad(lambda v: 5 * rounded(v)))(x)
    assert torch.equal(slopes, torch.full((2,), 5.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_is_kept(dtype):
    x = torch.tensor([0.25, 1.75], dtype=dtype, requires_grad=True)
    y = straight_through(x, x.round())
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype


def test_writing_into_the_result_in_place_is_safe_for_autograd():
    x = torch.tensor([0.3, 1.6], requires_grad=True)
    y = straight_through(x, x.round()).mul_(3)
    y.sum().backward()
    assert torch.equal(x.grad, torch.full((2,), 3.0))


@pytest.mark.parametrize("hard", [torch.zeros(3), torch.zeros(2, dtype=torch.int64)])
def test_refuses_what_does_not_fit(hard):
    with pytest.raises(ValueError, match="one shape and dtype"):
        straight_through(torch.zeros(2), hard)
