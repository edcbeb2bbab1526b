"""The eager Tensor: what goes in, what comes out, whose memory it is, and what it says about wrong use."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import pequegrad as pg
from pequegrad import Tensor
from pequegrad.errors import AutogradError, DeviceError, DTypeError, ShapeError

torch = pytest.importorskip("torch")


# --- data in --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (1.5, "float32"), (2, "int64"), (True, "bool"), ([1, 2.5], "float32"), ([[1], [2]], "int64"), ([], "float32"),
        (np.float64(1), "float64"), (np.zeros(2), "float64"), (np.int8([1]), "int32"), (np.uint16([1]), "int32"),
        ([np.float64(1), np.float64(2)], "float64"), (range(3), "int64"),
    ],
)  # fmt: skip
def test_dtype_follows_the_data(data, dtype):
    assert Tensor(data).dtype.name == dtype


def test_a_tensor_copies_its_data_and_from_numpy_shares_it():
    array = np.float32([1, 2])
    copied, shared = Tensor(array), pg.from_numpy(array)
    array[0] = 9
    assert copied.tolist() == [1, 2] and shared.tolist() == [9, 2]
    assert Tensor(shared).numpy() is not shared.numpy()


def test_lists_of_tensors_become_one_tensor():
    assert Tensor([Tensor(1.0), Tensor(2.0)]).tolist() == [1, 2]
    assert Tensor([Tensor([1.0, 2]), Tensor([3.0, 4])]).shape == (2, 2)


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        ("text", DTypeError, "must be real numbers"),
        (["a"], DTypeError, "must be real numbers"),
        (None, DTypeError, "must be real numbers"),
        (1j, DTypeError, "must be real numbers"),
        ([[1, 2], [3]], ShapeError, "ragged"),
        (2**70, DTypeError, "does not fit into int64"),
        ({1: 2}, DTypeError, "must be real numbers"),
    ],
)
def test_data_that_are_no_numbers_are_refused(data, error, words):
    with pytest.raises(error, match=words):
        Tensor(data)


def test_unknown_dtype_and_device_are_refused():
    with pytest.raises(DTypeError, match="not one of bool, uint8"):
        Tensor([1], dtype="complex64")
    with pytest.raises(DeviceError, match="'tpu' is not known; expected 'cpu', 'cuda'"):
        Tensor([1.0], device="tpu")
    with pytest.raises(DTypeError, match="expected an ndarray"):
        pg.from_numpy([1.0])


# --- data out -------------------------------------------------------------------------------------------------------


def test_numpy_shares_memory_and_is_refused_where_gradients_flow():
    x = Tensor([1.0, 2.0])
    x.numpy()[0] = 5
    assert x.tolist() == [5, 2]
    with pytest.raises(AutogradError, match=r"Use \.detach\(\)\.numpy\(\)"):
        Tensor([1.0], requires_grad=True).numpy()


def test_array_protocol_converts_and_copies_on_demand():
    x = Tensor([1.0, 2.0])
    assert np.asarray(x) is x.numpy() or np.shares_memory(np.asarray(x), x.numpy())
    assert np.asarray(x, np.float64).dtype == np.float64
    assert not np.shares_memory(np.array(x), x.numpy())
    assert np.allclose(np.sin(x), np.sin(x.numpy()))


def test_dlpack_shares_memory_with_numpy_and_torch_both_ways():
    x = Tensor([1.0, 2.0])
    theirs = torch.from_dlpack(x)
    theirs[0] = 7
    assert x.tolist() == [7, 2]
    ours = pg.from_dlpack(torch.arange(3))
    assert ours.dtype is pg.int64 and ours.tolist() == [0, 1, 2]
    assert np.from_dlpack(x).tolist() == [7, 2]


def test_python_numbers_come_out_of_single_elements_only():
    x = Tensor([[2.5]])
    assert (x.item(), float(x), int(x), bool(x), round(float(x))) == (2.5, 2.5, 2, True, 2)
    assert [10, 20, 30][Tensor(1)] == 20
    assert Tensor([0.5]).bfloat16().item() == 0.5
    for function in (Tensor([1.0, 2.0]).item, lambda: bool(Tensor([1.0, 2.0])), lambda: float(Tensor([]))):
        with pytest.raises(ShapeError):
            function()
    with pytest.raises(DTypeError, match="only integer tensors"):
        [1][Tensor(0.0)]


def test_length_iteration_and_membership():
    x = Tensor([[1.0, 2], [3, 4]])
    assert len(x) == 2 and [row.tolist() for row in x] == [[1, 2], [3, 4]]
    assert 3 in x and 5 not in x
    _, second = x
    assert second.tolist() == [3, 4]
    for function in (len, iter):
        with pytest.raises(ShapeError, match="0-dimensional"):
            function(Tensor(1.0))


def test_rows_of_an_iteration_are_views():
    x = Tensor([[1.0, 2], [3, 4]])
    for row in x:
        row.mul_(2)
    assert x.tolist() == [[2, 4], [6, 8]]


# --- copies ---------------------------------------------------------------------------------------------------------


def test_deep_copy_has_memory_and_gradient_of_its_own():
    x = Tensor([1.0, 2.0], requires_grad=True)
    (x * x).sum().backward()
    y = copy.deepcopy({"x": x, "again": x})
    assert y["x"] is y["again"] and y["x"].requires_grad and y["x"].grad.tolist() == [2, 4]
    with pg.no_grad():
        x.zero_()
        x.grad.zero_()
    assert y["x"].tolist() == [1, 2] and y["x"].grad.tolist() == [2, 4]
    with pytest.raises(AutogradError, match="leaf"):
        copy.deepcopy(x * 2)


@pytest.mark.parametrize("dtype", [dtype.name for dtype in pg.dtypes.DTYPES])
def test_pickle_keeps_dtype_shape_and_requires_grad(dtype):
    x = Tensor([[1, 0], [1, 1]], dtype=dtype).T
    y = pickle.loads(pickle.dumps(x))
    assert (y.dtype, y.shape, y.tolist()) == (x.dtype, x.shape, x.tolist())
    if x.dtype.is_floating_point:
        assert pickle.loads(pickle.dumps(x.clone().requires_grad_())).requires_grad


def test_conversions_return_the_same_tensor_where_nothing_changes():
    x = Tensor([1.0])
    assert x.to("cpu") is x and x.float() is x and x.contiguous() is x and x.to(x) is x
    assert x.to(pg.float64).dtype is pg.float64 and x.long().dtype is pg.int64 and x.type("bool").dtype is pg.bool_


@pytest.mark.parametrize("value", [-1.0, 300.0, 2.9, -2.9, float("nan"), 1e20])
@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "bool", "float16", "bfloat16"])
def test_casts_agree_with_torch(value, dtype):
    ours, theirs = Tensor([value]).to(dtype), torch.tensor([value]).to(getattr(torch, dtype))
    np.testing.assert_equal(ours.double().numpy(), theirs.double().numpy())


# --- attributes and in-place methods --------------------------------------------------------------------------------


def test_attributes_have_torchs_names():
    x = pg.zeros(2, 3)
    assert (x.shape, x.ndim, x.size(), x.size(1), x.dim(), x.numel()) == ((2, 3), 2, (2, 3), 3, 2, 6)
    assert (x.device, x.element_size(), x.is_floating_point(), x.is_leaf, x.grad) == ("cpu", 4, True, True, None)
    assert x.T.shape == (3, 2) and x.is_contiguous() and not x.T.is_contiguous()


IN_PLACE = {
    "add_": (2.0,), "sub_": (0.5,), "mul_": (3.0,), "div_": (2.0,), "pow_": (2,), "clamp_": (0.0, 1.0), "exp_": (),
    "relu_": (), "sqrt_": (), "neg_": (), "abs_": (), "zero_": (), "fill_": (7.0,), "sigmoid_": (), "tanh_": (),
    "floor_": (), "round_": (), "reciprocal_": (), "log_": (), "square_": (), "copy_": (4.0,),
}  # fmt: skip


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_methods_write_into_the_same_memory_as_torchs(name):
    values = np.float32([0.25, 1.5, 2.5])
    ours, theirs = Tensor(values), torch.tensor(values)
    memory, version = ours.numpy(), ours.storage.version
    arguments = IN_PLACE[name]
    assert getattr(ours, name)(*arguments) is ours
    if name == "copy_":
        theirs.copy_(torch.tensor(4.0))
    else:
        getattr(theirs, name)(*arguments)
    np.testing.assert_allclose(memory, theirs.numpy(), rtol=1e-6)
    assert ours.storage.version == version + 1


def test_alpha_scales_the_addend():
    x = Tensor([1.0, 2.0])
    x.add_(Tensor([10.0, 20.0]), alpha=-0.1)
    np.testing.assert_allclose(x.numpy(), [0, 0], atol=1e-6)
    assert pg.sub(Tensor([1.0]), Tensor([2.0]), alpha=3).tolist() == [-5]


def test_augmented_assignment_is_in_place():
    x = Tensor([1.0, 2.0])
    memory = x.numpy()
    x += 1
    x *= 2
    x -= 1
    x /= 2
    x **= 2
    assert memory.tolist() == x.tolist() == [2.25, 6.25]


def test_a_write_through_overlapping_memory_reads_before_it_writes():
    x = pg.arange(5.0)
    x[1:] = x[:-1]
    assert x.tolist() == [0, 0, 1, 2, 3]


def test_grad_must_fit_the_tensor():
    x = Tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(ShapeError, match="must have the tensor's shape"):
        x.grad = Tensor([1.0])
    with pytest.raises(DTypeError, match="must be a Tensor"):
        x.grad = 1.0
    x.grad = Tensor([1.0, 1.0])
    assert x.grad.tolist() == [1, 1]


def test_errors_name_the_users_line_once():
    with pytest.raises(ShapeError) as caught:
        Tensor([1.0, 2]) + Tensor([1.0, 2, 3])
    assert str(caught.value).startswith("test_tensor.py:")
    assert str(caught.value).count("test_tensor.py") == 1
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)


def test_all_that_the_door_names_is_there():
    for name in pg.__all__:
        assert getattr(pg, name) is not None, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        pg.nothing  # noqa: B018
    assert callable(pg.tensor) and pg.is_tensor(pg.tensor([1])) and not pg.is_tensor([1])


def test_closeness_and_equality_are_torchs():
    x, y = [1.0, float("inf"), float("nan"), 1.00001], [1.0, float("inf"), float("nan"), 1.0]
    for equal_nan in (False, True):
        ours = pg.isclose(Tensor(x), Tensor(y), equal_nan=equal_nan)
        assert ours.tolist() == torch.isclose(torch.tensor(x), torch.tensor(y), equal_nan=equal_nan).tolist()
    assert (
        pg.allclose(Tensor([1.0]), 1.0) and pg.equal(Tensor([1]), Tensor([1])) and not pg.equal(Tensor([1]), Tensor(1))
    )
