"""Tensors that lie on a device: moving, mixing, making, reading, and sharing memory with other libraries."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest

import pequegrad as pg
import pequegrad.nn.functional as F
from pequegrad import Tensor, arrays
from pequegrad.errors import AutogradError, DeviceError, DTypeError, IndexOutOfRange


def values(shape=(3, 4)):
    return np.sin(np.arange(np.prod(shape), dtype=np.float32)).reshape(shape)


# --- there, and back ------------------------------------------------------------------------------------------------


def test_importing_and_computing_on_the_cpu_imports_no_cupy():
    code = """
import sys
import pequegrad as pg
from pequegrad import nn, optim
model = nn.Linear(2, 2).cpu().to("cpu")
model(pg.ones(1, 2, device="cpu")).sum().backward()
optim.Adam(model.parameters()).step()
sys.exit("cupy" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_to_cuda_and_back_keeps_values_and_says_where_it_is(cupy):
    x = Tensor(values())
    there = x.to("cuda")
    assert (x.device, there.device, there.cpu().device) == ("cpu", "cuda", "cpu")
    assert isinstance(there.array, cupy.ndarray) and "device='cuda'" in repr(there)
    np.testing.assert_array_equal(there.cpu().numpy(), values())
    assert there.to("cuda:0") is there and there.cuda() is there and x.cpu() is x and x.to(device="cpu") is x
    assert x.cuda(1).device == there.to("cuda:1").device == "cuda:1"
    assert x.to("cuda", "float64").spec.dtype is pg.float64 and x.to("cuda", non_blocking=True).device == "cuda"
    like = x.to(Tensor([1.0], dtype="float64").cuda())
    assert (like.device, like.dtype) == ("cuda", pg.float64)


def test_gradients_cross_devices(cupy):
    x = Tensor(values(), requires_grad=True)
    (x.cuda() * 2).cpu().sum().backward()
    assert x.grad.device == "cpu" and x.grad.tolist() == np.full((3, 4), 2.0).tolist()
    weight = Tensor(2.0, requires_grad=True)  # a single number on the CPU computes with tensors on the device
    (Tensor(values()).cuda() * weight).sum().backward()
    assert weight.grad.device == "cpu" and weight.grad.item() == pytest.approx(values().sum(), rel=1e-5)


def test_second_order_gradients_stay_on_the_device(cupy):
    x = Tensor(values(), device="cuda", requires_grad=True)
    (first,) = pg.grad((x**3).sum(), x, create_graph=True)
    (second,) = pg.grad(first.sum(), x)
    assert second.device == "cuda"
    np.testing.assert_allclose(np.asarray(second), 6 * values(), rtol=1e-5)


def test_elements_are_read_as_on_the_cpu_and_a_copy_in_numpy_cannot_be_written(cupy):
    x = Tensor([1.5, 2.5], device="cuda")
    assert (x[1].item(), float(x[0]), x.tolist(), len(x), [float(part) for part in x]) == (
        2.5,
        1.5,
        [1.5, 2.5],
        2,
        [1.5, 2.5],
    )
    assert str(x) == str(x.cpu()) and x._repr_html_() == x.cpu()._repr_html_() and bool((x > 1).all())
    with pytest.raises(ValueError, match="read-only"):
        x.numpy()[0] = 3
    np.asarray(x)[0] = 3
    assert x.tolist() == [1.5, 2.5]
    assert pickle.loads(pickle.dumps(x)).device == "cuda"


def test_assignment_works_across_devices_and_within(cupy):
    x = pg.zeros(3, 2, device="cuda")
    x.copy_(Tensor(np.ones((3, 2), np.float32)))
    x[1] = 5
    x[[0, 2], 1] = 7.0
    x += 1
    x[:, 0].zero_()
    assert x.device == "cuda" and x.tolist() == [[0, 8], [0, 6], [0, 8]]
    y = pg.zeros(3, 2)
    y.copy_(x)
    assert y.device == "cpu" and y.tolist() == x.tolist()


@pytest.mark.parametrize(
    "index", [[0, 2], np.array([0, 2]), (slice(None), [1, 1]), Tensor([2]), np.array([True, False, True])]
)
def test_indexing_takes_lists_arrays_and_tensors_from_the_cpu(cupy, index):
    x = Tensor(values(), device="cuda")
    key = np.asarray(index) if isinstance(index, Tensor) else index
    assert x[index].device == "cuda"
    np.testing.assert_array_equal(np.asarray(x[index]), values()[key])


# --- making ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda **where: pg.zeros(2, 3, **where), lambda **where: pg.ones(2, **where), lambda **where: pg.empty(2, **where),
        lambda **where: pg.full((2, 2), 3.5, **where), lambda **where: pg.arange(5, **where),
        lambda **where: pg.arange(0.0, 1.0, 0.25, **where), lambda **where: pg.linspace(0, 1, 5, **where),
        lambda **where: pg.eye(3, 4, **where), lambda **where: pg.tensor([1, 2], **where),
        lambda **where: pg.tensor([1.0], requires_grad=True, **where), lambda **where: Tensor(np.eye(2), **where),
    ],
)  # fmt: skip
def test_what_is_made_with_a_device_lies_there(cupy, make):
    there, here = make(device="cuda"), make()
    assert (there.device, here.device) == ("cuda", "cpu") and there.spec == here.spec
    assert there.requires_grad == here.requires_grad and there.tolist() == here.tolist()


@pytest.mark.parametrize("make", [pg.zeros_like, pg.ones_like, pg.empty_like, lambda x: pg.full_like(x, 2), pg.rand_like,
                                  pg.randn_like, lambda x: pg.randint_like(x, 5), lambda x: x.new_zeros(3),
                                  lambda x: x.new_ones(2), lambda x: x.new_full((2,), 3.0)])  # fmt: skip
def test_what_is_made_like_a_tensor_lies_where_it_does(cupy, make):
    x = Tensor(values())
    assert make(x.cuda()).device == "cuda" and make(x).device == "cpu"


FUNCTIONS = {
    "tril": lambda x: x.tril(), "triu": lambda x: pg.triu(x, 1), "diag": lambda x: pg.diag(x[0]), "max": lambda x: x.max(1).values,
    "one_hot": lambda x: pg.one_hot((x > 0).to("int64"), 2), "softmax": lambda x: x.softmax(-1), "std": lambda x: x.std(),
    "adaptive pool": lambda x: F.adaptive_avg_pool2d(x.reshape(1, 1, 3, 4), (2, 3)), "clamp": lambda x: x.clamp(-0.5, 0.5),
    "cross_entropy": lambda x: F.cross_entropy(x, Tensor([1, 0, 3]).to(x.device)), "nonzero": lambda x: pg.nonzero(x > 0),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), "topk": lambda x: x.topk(2)[0],
    "masked_select": lambda x: pg.masked_select(x, x > 0), "gelu": lambda x: F.gelu(x), "where": lambda x: pg.where(x > 0, x, 0.0),
    "einsum": lambda x: pg.einsum("ij,kj->ik", x, x), "cat": lambda x: pg.cat([x, x * 2]), "take": lambda x: x.cumsum(0).flip(1),
    "scatter_add": lambda x: x.scatter_add(0, (x > 0).to("int64"), x),
    "int sum": lambda x: (x > 0).to("int64").index_add(0, Tensor([1, 1, 0]).to(x.device), x.to("int64")),
    "norm": lambda x: F.layer_norm(x, (4,)), "diagonal": lambda x: x.diagonal(1), "power": lambda x: 2**x,
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_composite_functions_and_their_gradients_stay_on_the_device(cupy, name):
    grads = []
    for device in ("cpu", "cuda"):
        x = Tensor(values(), device=device, requires_grad=True)
        result = FUNCTIONS[name](x)
        assert result.device == device
        if result.requires_grad:
            (result * result).sum().backward()
            assert x.grad.device == device
        grads.append((np.asarray(result.detach()), None if x.grad is None else np.asarray(x.grad)))
    np.testing.assert_array_equal(grads[0][0], grads[1][0])
    np.testing.assert_array_equal(*[np.asarray(gradient, np.float64) for _, gradient in grads])


# --- random ---------------------------------------------------------------------------------------------------------


def test_random_numbers_have_the_same_bits_on_every_device_in_one_sequence(cupy):
    def draw(device):
        pg.manual_seed(7)
        x = Tensor(values(), device=device)
        drawn = [
            pg.rand(5),
            pg.randn(3, device=device),
            pg.randint(0, 9, (4,), device=device),
            pg.randperm(6, device=device),
        ]
        return [*drawn, F.dropout(x, 0.5), pg.bernoulli(x.abs()), x.clone().uniform_(0, 2), pg.rand(2, dtype="float16")]

    here, there = draw("cpu"), draw("cuda")
    assert [x.device for x in there] == ["cpu", *["cuda"] * 6, "cpu"]
    assert [x.tolist() for x in here] == [x.tolist() for x in there]
    state = pg.get_rng_state()
    first = pg.rand(3).tolist()
    pg.set_rng_state(state.cpu())
    assert pg.rand(3, device="cuda").tolist() == first
    assert pg.manual_seed(3).initial_seed() == 3


# --- mixing ---------------------------------------------------------------------------------------------------------


def test_operands_on_different_devices_are_refused_with_both_named(cupy):
    x, y = Tensor(values()), Tensor(values())
    with pytest.raises(
        DeviceError, match=r"add: input 0, float32\[3,4\], lies on 'cuda' and input 1, .* on 'cpu'.*\.to\('cuda'\)"
    ):
        x.cuda() + y
    with pytest.raises(DeviceError, match=r"matmul: input 1, float32\[4,3\], lies on 'cuda' and input 0, .* on 'cpu'"):
        x @ y.cuda().T
    with pytest.raises(DeviceError, match="on 'cuda:1'"):
        x.cuda(1) + y.cuda(0)
    with pytest.raises(DeviceError, match="add"):
        x.cuda() + values()
    assert (x.cuda() + Tensor(1.0)).device == (x.cuda() * np.float32(2)).device == "cuda"


def test_an_index_out_of_range_is_an_error_with_the_index(cupy):
    x = Tensor(values(), device="cuda")
    with pytest.raises(IndexOutOfRange, match="index 7"):
        x[Tensor([0, 7]).cuda()]
    with pytest.raises(IndexOutOfRange, match="index 9"):
        x.gather(0, Tensor([[9, 0, 0, 0]]).cuda())
    with pytest.raises(IndexOutOfRange, match="target 4 is no class"):
        F.cross_entropy(x, Tensor([0, 4, 1]).cuda())


# --- what is missing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ask", [lambda: Tensor([1.0]).cuda(), lambda: pg.zeros(2, device="cuda"), lambda: pg.nn.Linear(1, 1).cuda(),
                                 lambda: pg.nn.ReLU().to("cuda"), lambda: pg.rand(2, device="cuda:0")])  # fmt: skip
def test_without_cupy_one_error_names_the_extra(without_cupy, ask):
    with pytest.raises(DeviceError, match=r"needs CuPy.*pip install 'pequegrad\[cuda\]'"):
        ask()


def test_without_a_gpu_one_error_says_so_and_names_the_simulator(without_gpu):
    with pytest.raises(DeviceError, match=r"no GPU was found \(cudaErrorNoDevice.*cuda-sim"):
        Tensor([1.0]).cuda()
    assert Tensor([1.0]).to("cpu").item() == 1.0 and not arrays.device_types


def test_a_device_that_is_not_there_is_refused(cupy):
    with pytest.raises(DeviceError, match="'cuda:5': there are 2 here"):
        Tensor([1.0]).to("cuda:5")
    for wrong in ("tpu", "cuda:x", "cpu:1"):
        with pytest.raises(DeviceError, match="expected 'cpu', 'cuda'"):
            pg.zeros(1, device=wrong)


# --- other libraries ------------------------------------------------------------------------------------------------


def test_a_device_array_becomes_a_tensor_and_the_memory_is_shared_where_torch_shares(cupy):
    array = cupy.asarray(values())
    copy, shared = Tensor(array), pg.from_dlpack(array)
    array[0, 0] = 9
    assert copy.device == shared.device == "cuda" and copy[0, 0].item() == 0 and shared[0, 0].item() == 9
    assert (shared + array).device == "cuda"  # an array among operands
    with pytest.raises(DTypeError, match="complex64"):
        Tensor(cupy.asarray(np.zeros(2, np.complex64)))
    assert Tensor(cupy.asarray(np.zeros(2, np.int16))).dtype is pg.int32


def test_the_cuda_array_interface_is_that_of_the_memory(cupy):
    x = Tensor(values(), device="cuda")
    assert x.__cuda_array_interface__["data"][0] == x.array.data.ptr
    assert x.T.__cuda_array_interface__["strides"] == (4, 16)
    assert not hasattr(x.cpu(), "__cuda_array_interface__")
    with pytest.raises(AutogradError, match="detach"):
        _ = x.requires_grad_().__cuda_array_interface__


def test_dlpack_goes_out_and_in_without_a_copy(cupy):
    here, there = Tensor(values()), Tensor(values(), device="cuda")
    assert here.__dlpack_device__() == (1, 0) and there.__dlpack_device__() == (2, 0)
    pg.from_dlpack(there)[0, 0] = 5
    pg.from_dlpack(here)[0, 0] = 5
    assert there[0, 0].item() == here[0, 0].item() == 5
    np.from_dlpack(here)[0, 1] = 6
    assert here[0, 1].item() == 6
    with pytest.raises(DTypeError, match="__dlpack__"):
        pg.from_dlpack([1.0])
