"""Module: what it holds, how it changes, how it is copied, saved and loaded."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from pequegrad import Tensor, nn
from pequegrad.errors import DeviceError, DTypeError, StateDictError, TraceError
from pequegrad.ops.core import Interpreter, TensorSpec, use_interpreter
from pequegrad.storage import Storage

torch = pytest.importorskip("torch")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(4, 2, bias=False))
        self.scale = nn.Parameter(Tensor([2.0]))
        self.register_buffer("offset", Tensor([1.0]))
        self.register_buffer("cache", Tensor([5.0]), persistent=False)
        self.register_buffer("nothing", None)

    def forward(self, x):
        return self.rest(self.norm(self.first(x))) * self.scale + self.offset


class TorchNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(3, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.rest = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(4, 2, bias=False))
        self.scale = torch.nn.Parameter(torch.tensor([2.0]))
        self.register_buffer("offset", torch.tensor([1.0]))
        self.register_buffer("cache", torch.tensor([5.0]), persistent=False)
        self.register_buffer("nothing", None)


def traced(shape=(1,)):
    """A tensor without data, as a tracer makes them."""
    tensor = Tensor.__new__(Tensor)
    tensor._init(Storage(None), TensorSpec(shape, Tensor([1.0]).dtype), None)
    assert tensor.is_traced
    return tensor


def test_names_are_torchs_in_torchs_order():
    ours, theirs = Net(), TorchNet()
    for what in ("named_parameters", "named_buffers", "named_modules", "named_children"):
        assert [name for name, _ in getattr(ours, what)()] == [name for name, _ in getattr(theirs, what)()], what
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert len(list(ours.parameters())) == len(list(theirs.parameters()))
    assert len(list(ours.modules())) == len(list(theirs.modules()))


def test_torchs_state_loads_into_the_same_memory():
    ours, theirs = Net(), TorchNet()
    views = {name: tensor.detach().numpy() for name, tensor in ours.state_dict().items()}
    result = ours.load_state_dict(theirs.state_dict())
    assert result.missing_keys == [] and result.unexpected_keys == []
    for name, value in theirs.state_dict().items():
        np.testing.assert_array_equal(views[name], value.numpy(), err_msg=name)
        assert views[name].dtype == value.numpy().dtype, name


def test_state_dict_shares_memory_and_has_no_history():
    net = Net()
    net.state_dict()["scale"].fill_(9.0)
    assert net.scale.item() == 9.0
    assert not net.state_dict()["scale"].requires_grad


def test_load_names_every_problem_and_changes_nothing():
    net = Net()
    before = {name: tensor.array.copy() for name, tensor in net.state_dict().items()}
    state = {name: np.zeros_like(value) for name, value in before.items()}
    del state["scale"]
    state |= {"extra": np.zeros(1), "first.weight": np.zeros((4, 5), np.float32)}
    with pytest.raises(StateDictError) as caught:
        net.load_state_dict(state)
    for part in ("missing keys: scale", "unexpected keys: extra", "first.weight: expected (4, 3), got (4, 5)", "Net"):
        assert part in str(caught.value)
    with pytest.raises(StateDictError, match=r"first.weight"):
        net.load_state_dict(state, strict=False)
    for name, tensor in net.state_dict().items():
        np.testing.assert_array_equal(tensor.array, before[name])
    del state["first.weight"]
    result = net.load_state_dict(state, strict=False)
    assert result == (["scale", "first.weight"], ["extra"])
    assert net.norm.running_var.array.sum() == 0 and net.scale.item() == 2.0


def test_deepcopy_and_pickle_are_independent_and_keep_ties():
    net = Net()
    net.tied = net.scale
    for clone in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert clone.tied is clone.scale and clone.scale is not net.scale
        assert isinstance(clone.scale, nn.Parameter) and clone.scale.requires_grad
        clone.scale.detach().fill_(7.0)
        assert net.scale.item() == 2.0
        assert list(clone.state_dict()) == list(net.state_dict())
        assert "cache" not in clone.state_dict() and clone.cache.item() == 5.0
        x = Tensor(np.random.randn(5, 3).astype(np.float32))
        np.testing.assert_array_equal(clone.eval().first(x).array, net.eval().first(x).array)


def test_tied_parameters_are_listed_once_and_saved_twice():
    net = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    net["b"].weight = net["a"].weight
    assert [name for name, _ in net.named_parameters()] == ["a.weight", "a.bias", "b.bias"]
    assert set(net.state_dict()) == {"a.weight", "a.bias", "b.weight", "b.bias"}


def test_train_and_eval_reach_all_modules():
    net = Net()
    assert net.eval() is net
    assert not any(module.training for module in net.modules())
    net.train()
    assert all(module.training for module in net.modules())
    with pytest.raises(DTypeError, match="bool"):
        net.train("yes")


def test_apply_goes_children_first():
    names = []
    Net().apply(lambda module: names.append(type(module).__name__))
    assert names == ["Linear", "BatchNorm1d", "ReLU", "Linear", "Sequential", "Net"]


def test_to_converts_floating_point_state_in_place():
    net = Net()
    parameter = net.scale
    parameter.grad = Tensor([1.0])
    assert net.double() is net and net.scale is parameter
    assert parameter.dtype.name == "float64" and parameter.grad.dtype.name == "float64"
    assert net.norm.running_mean.dtype.name == "float64" and net.norm.num_batches_tracked.dtype.name == "int64"
    assert net(Tensor(np.random.randn(4, 3))).dtype.name == "float64"
    assert net.half().scale.dtype.name == "float16" and net.float().scale.dtype.name == "float32"
    assert net.to("cpu") is net and net.cpu() is net
    with pytest.raises(DTypeError, match="floating-point"):
        net.to("int64")


def test_gpu_is_refused_where_there_is_none():
    for module in (Net(), nn.ReLU()):
        with pytest.raises(DeviceError):
            module.cuda()
        with pytest.raises(DeviceError):
            module.to("cuda:0")


def test_requires_grad_and_zero_grad():
    net = Net()
    net(Tensor(np.random.randn(4, 3).astype(np.float32))).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    net.zero_grad(set_to_none=False)
    assert all((p.grad.array == 0).all() for p in net.parameters())
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())
    net.requires_grad_(False)
    assert not any(p.requires_grad for p in net.parameters())
    assert not net(Tensor(np.random.randn(4, 3).astype(np.float32))).requires_grad


def test_parameter_is_a_leaf_that_shares_memory():
    data = Tensor([[1.0, 2.0], [3.0, 4.0]])
    whole, part = nn.Parameter(data), nn.Parameter(data[0])
    assert isinstance(whole, Tensor) and whole.requires_grad and whole.is_leaf and part.is_leaf
    assert type(whole * 2) is Tensor
    whole.detach().fill_(5.0)
    assert data.tolist() == [[5.0, 5.0], [5.0, 5.0]] and part.tolist() == [5.0, 5.0]
    (part * 3).sum().backward()
    assert part.grad.tolist() == [3.0, 3.0]
    assert not nn.Parameter(data, requires_grad=False).requires_grad
    assert "Parameter containing" in repr(whole)
    with pytest.raises(DTypeError):
        nn.Parameter(Tensor([1, 2]))


def test_hooks_see_and_replace_arguments_and_results():
    module = nn.Identity()
    seen = []
    first = module.register_forward_pre_hook(lambda m, args: (args[0] + 1,))
    second = module.register_forward_hook(lambda m, args, result: seen.append(result.item()) or result * 10)
    assert module(Tensor([1.0])).item() == 20.0 and seen == [2.0]
    first.remove()
    second.remove()
    assert module(Tensor([1.0])).item() == 1.0


@pytest.mark.parametrize(
    "change",
    [
        lambda net: setattr(net, "note", 1),
        lambda net: setattr(net.rest[1], "weight", nn.Parameter(Tensor(np.zeros((2, 4), np.float32)))),
        lambda net: setattr(net, "first", nn.Linear(3, 4)),
        lambda net: delattr(net, "offset"),
        lambda net: net.eval(),
        lambda net: net.requires_grad_(False),
        lambda net: net.double(),
        lambda net: net.rest.append(nn.ReLU()),
        lambda net: net.rest.insert(0, nn.ReLU()),
        lambda net: net.rest.__setitem__(0, nn.Tanh()),
        lambda net: net.rest.__delitem__(0),
        lambda net: net.rest.pop(),
        lambda net: net.register_buffer("more", Tensor([1.0])),
        lambda net: net.register_parameter("more", None),
        lambda net: net.add_module("more", nn.ReLU()),
        lambda net: net.register_forward_hook(print),
        lambda net: net.register_forward_hook(print).remove(),
        lambda net: nn.ModuleDict({"a": nn.ReLU()}).pop("a"),
    ],
)
def test_every_change_is_counted(change):
    net = Net()
    before = nn.Module.changes.count
    change(net)
    assert nn.Module.changes.count != before


def test_what_changes_no_structure_is_not_counted():
    net = Net().train()
    before = nn.Module.changes.count
    net.train()
    net.first = net.first
    net(Tensor(np.random.randn(4, 3).astype(np.float32))).sum().backward()
    net.load_state_dict(net.state_dict())
    net.zero_grad()
    assert nn.Module.changes.count == before


def test_traced_tensors_may_not_be_kept_in_a_module():
    net = Net()
    for name in ("last", "offset"):
        with pytest.raises(TraceError, match=rf"kept in Net.{name}, .*Return it"):
            setattr(net, name, traced())
    with pytest.raises(TraceError):
        net.history = [traced()]
    with pytest.raises(TraceError):
        nn.Parameter(traced())
    net.offset += 1
    assert net.offset.item() == 2.0


def test_calls_report_to_the_interpreter():
    class Listener(Interpreter):
        def __init__(self):
            self.called = []

        def module_called(self, module):
            self.called.append(module)

    net, listener = Net().eval(), Listener()
    with use_interpreter(listener):
        net(Tensor(np.random.randn(4, 3).astype(np.float32)))
    assert listener.called == [net, net.first, net.norm, net.rest, net.rest[0], net.rest[1]]


def test_attributes_of_the_wrong_kind_are_refused():
    net = Net()
    for name, value in (("scale", Tensor([1.0])), ("first", 3), ("offset", 3)):
        with pytest.raises(TypeError, match=f"Net.{name}"):
            setattr(net, name, value)
    net.scale = None
    assert net.scale is None and "scale" not in net.state_dict()
    with pytest.raises(KeyError):
        net.register_buffer("forward", None)
    with pytest.raises(KeyError):
        net.add_module("a.b", nn.ReLU())
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        net.absent  # noqa: B018


def test_forgotten_init_is_said():
    class Bad(nn.Module):
        def __init__(self):
            self.layer = nn.Linear(1, 1)

    with pytest.raises(AttributeError, match=r"super\(\).__init__\(\)"):
        Bad()
    with pytest.raises(NotImplementedError, match="Module has no forward"):
        nn.Module()(1)


def test_a_name_moves_between_kinds():
    net = Net()
    net.thing = 3
    net.thing = nn.ReLU()
    assert net.thing is net._modules["thing"] and "thing" not in net.__dict__
    net.thing = nn.Parameter(Tensor([1.0]))
    assert "thing" in net._parameters and "thing" not in net._modules


def test_properties_and_plain_attributes_work():
    class Box(nn.Module):
        @property
        def size(self):
            return self._size

        @size.setter
        def size(self, value):
            self._size = value * 2

    box = Box()
    box.size = 4
    assert box.size == 8


def test_printing_is_torchs():
    def build(kit):
        return kit.Sequential(
            kit.Conv2d(1, 8, 3, padding=1, bias=False), kit.BatchNorm2d(8), kit.ReLU(), kit.MaxPool2d(2),
            kit.Sequential(kit.Flatten(), kit.Linear(8, 2)), kit.Dropout(0.2), kit.LayerNorm(2), kit.Embedding(3, 4),
            kit.GELU(), kit.Softmax(dim=1), kit.Identity(), kit.ModuleList([kit.Tanh()]), kit.AvgPool2d(2),
            kit.AdaptiveAvgPool2d(1), kit.Unflatten(1, (1, 2)), kit.LeakyReLU(0.2), kit.Softplus(), kit.SiLU(),
        )  # fmt: skip

    assert repr(build(nn)) == repr(build(torch.nn))


def test_containers_behave_as_lists_and_dicts():
    a, b, c = nn.ReLU(), nn.Tanh(), nn.Sigmoid()
    row = nn.Sequential(a, b)
    assert len(row) == 2 and row[-1] is b and list(row[:1]) == [a] and isinstance(row[:1], nn.Sequential)
    row.append(c).insert(1, nn.Identity())
    del row[1]
    assert list(row) == [a, b, c] and list(row._modules) == ["0", "1", "2"]
    with pytest.raises(IndexError):
        row[3]
    assert list(nn.Sequential({"x": a, "y": b})._modules) == ["x", "y"]
    items = nn.ModuleList([a]).extend([b])
    assert items[0] is a and items.pop() is b and len(items) == 1
    table = nn.ModuleDict({"a": a})
    table.update({"b": b})
    assert "b" in table and list(table.keys()) == ["a", "b"] and list(table.values()) == [a, b]
    with pytest.raises(TypeError):
        nn.ModuleList([1])
    parameters = nn.ParameterList([Tensor([1.0])])
    parameters.append(nn.Parameter(Tensor([2.0])))
    assert [name for name, _ in parameters.named_parameters()] == ["0", "1"] and parameters[1].item() == 2.0


def test_submodules_and_parameters_by_dotted_name():
    net = Net()
    assert net.get_submodule("rest.1") is net.rest[1] and net.get_submodule("") is net
    assert net.get_parameter("rest.1.weight") is net.rest[1].weight
    with pytest.raises(AttributeError, match="no submodule 'x'"):
        net.get_submodule("rest.x")
    with pytest.raises(AttributeError):
        net.get_parameter("rest.1.bias")
