"""Workloads are the same work in every framework, and its amounts are counted right."""

import dataclasses

import numpy as np
import pytest

from benchmarks.peers import CPU_PEERS
from benchmarks.workloads import GPU_WORKLOADS, SMALL_WORKLOADS, WORKLOADS, find
from benchmarks.workloads.layered import Conv2d, Layered, Linear, Residual
from benchmarks.workloads.transformers import Gpt

STEPS = 3
RANDOM_NETS = 6
NETS = [
    *SMALL_WORKLOADS,
    *(
        dataclasses.replace(find(name), batch=4)
        for name in ("resnet", "pinn", "vae", *(f"random-{seed}" for seed in range(RANDOM_NETS)))
    ),
]


def losses(peer, workload, variant):
    batches = workload.batches(2)
    step = peer.make_step(workload, batches, variant)
    return [peer.read(step(i % len(batches))) for i in range(STEPS)]


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    pytest.importorskip("torch")
    folder = str(tmp_path_factory.mktemp("cache"))
    return {name: CPU_PEERS[name](1, folder) for name in ("torch", "pequegrad-eager")}


@pytest.mark.parametrize("workload", NETS, ids=lambda workload: workload.name)
def test_pequegrad_and_torch_do_the_same_work(peers, workload):
    ours, theirs = (losses(peer, workload, peer.variants(workload)[0]) for peer in peers.values())
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert len(set(theirs)) == STEPS


def test_a_net_that_is_not_trained_gives_the_same_answers_again(peers, tmp_path):
    pytest.importorskip("jax")
    workload = find("policy")
    ours, theirs = (losses(peer, workload, peer.variants(workload)[0]) for peer in peers.values())
    jax = losses(CPU_PEERS["jax"](1, str(tmp_path)), workload, "default")
    np.testing.assert_allclose([ours, jax], [theirs, theirs], rtol=1e-4)
    assert theirs[0] == theirs[2] != theirs[1]
    products, biases = 64 * 256 + 256 * 256 + 256 * 4, 256 + 256 + 4
    assert workload.flops() == 2 * products
    assert workload.least_bytes() == 4 * (products + biases + 64 + 4)


@pytest.mark.parametrize("name", ["conv-small", "resnet", "pinn", "gpt-small", "random-3"])
def test_jax_does_the_same_work_in_its_last_way(peers, name, tmp_path):
    pytest.importorskip("jax")
    workload = dataclasses.replace(find(name), batch=4)
    peer = CPU_PEERS["jax"](1, str(tmp_path))
    ours = losses(peer, workload, peer.variants(workload)[-1])
    np.testing.assert_allclose(ours, losses(peers["torch"], workload, "foreach"), rtol=1e-4)


@pytest.mark.parametrize("workload", NETS, ids=lambda workload: workload.name)
def test_weights_have_the_shapes_of_the_parameters(workload):
    import pequegrad

    parameters = list(workload.module(pequegrad).parameters())
    assert [weight.shape for weight in workload.weights()] == [parameter.shape for parameter in parameters]
    assert workload.parameter_count() == sum(parameter.numel() for parameter in parameters)


def test_gpt2_has_its_number_of_parameters():
    for workload in (find("gpt2"), find("gpt2-long")):
        assert isinstance(workload, Gpt)
        assert 123e6 < workload.parameter_count() < 125.5e6


def test_operations_of_chains_with_shortcuts():
    net = Layered(
        name="net",
        title="",
        layers=(
            Conv2d(2, 4, 3, stride=2, padding=1),
            Residual((Conv2d(4, 6, 3, padding=1),), (Conv2d(4, 6, 1),)),
        ),
        input_shape=(2, 8, 8),
        batch=3,
        loss="mse",
        optimizer=find("mlp").optimizer,
    )
    first, body, shortcut = (2 * 3 * 16 * products for products in (2 * 4 * 9, 4 * 6 * 9, 4 * 6))
    assert net.flops() == 2 * first + 3 * (body + shortcut)
    assert net.shapes()[-1] == (6, 4, 4)


def test_a_perceptron_must_move_its_parameters_and_batch():
    net = Layered(
        name="net",
        title="",
        layers=(Linear(3, 5),),
        input_shape=(3,),
        batch=2,
        loss="mse",
        optimizer=find("tiny").optimizer,
    )
    assert net.least_bytes() == 4 * (2 * 20 * 3 + 2 * (3 + 5))


def test_random_nets_are_of_many_kinds_and_their_seeds_decide_them():
    drawn = [find(f"random-{seed}") for seed in range(40)]
    assert drawn == [find(f"random-{seed}") for seed in range(40)]
    assert {net.has_images for net in drawn} == {True, False}
    assert {net.loss for net in drawn} == {"cross_entropy", "mse"}
    assert len({net.optimizer for net in drawn}) == 4
    assert len({net.batch for net in drawn}) > 4


def test_names_stand_for_one_workload_each():
    names = {workload.name for workload in (*WORKLOADS, *GPU_WORKLOADS, *SMALL_WORKLOADS)}
    assert all(find(name).name == name for name in names)
    with pytest.raises(KeyError):
        find("random-net")
