"""Whose a carried state is: each process, copy and rank has a stream of its own, and threads share a layer's."""

import copy
import io
import os
import pickle
import threading

import pytest
import torch
import torch.distributed as dist
from test_stateful import B, I, T, U, assert_goes_on, make_free, make_layer, x_of
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tritongru.keras import Bidirectional


def through_a_file(layer):
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(
    "make",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), through_a_file],
    ids=["deepcopy", "pickle", "save"],
)
@pytest.mark.parametrize("inference", [False, True])
def test_a_copy_goes_on_from_the_state_by_itself(make, inference):
    layer, x = make_layer(), x_of().requires_grad_()
    with torch.inference_mode(inference):
        layer(x)
    twin = make(layer)
    assert twin.states[0].data_ptr() != layer.states[0].data_ptr() and not twin.states[0].requires_grad
    first, second = x_of(), x_of()
    layer(first)
    twin(second)
    assert_goes_on(layer, x.detach(), first)
    assert_goes_on(twin, x.detach(), second)
    assert make(make_layer()).states == [None]


def _go_on(layer, x, expected, results):
    torch.set_num_threads(1)
    torch.testing.assert_close(layer(x), expected)
    # The weights are the parent's, the state is not.
    with torch.no_grad():
        layer.kernel.zero_()
    layer.reset_states()
    results.put(True)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_another_process_shares_the_weights_and_has_its_own_state(start):
    layer, x, own = make_layer().share_memory(), x_of(), x_of()
    layer(x)
    kept = layer.states[0].clone()
    expected = make_free(layer)(torch.cat([x, own], 1))[:, -T:].detach()
    context = torch.multiprocessing.get_context(start)
    results = context.Queue()
    process = context.Process(target=_go_on, args=(layer, own, expected, results))
    process.start()
    process.join(120)
    assert process.exitcode == 0 and results.get(timeout=10)
    assert not layer.kernel.any() and torch.equal(layer.states[0], kept)


def in_threads(work, count=4):
    failures = []

    def guarded(number):
        try:
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failures, failures


def test_threads_have_streams_of_their_own_in_copies():
    layer = make_layer()
    twins, inputs = [copy.deepcopy(layer) for _ in range(4)], [x_of(B, 5 * T, I) for _ in range(4)]
    expected = [make_free(layer)(x) for x in inputs]
    found = {}

    def work(number):
        found[number] = torch.cat([twins[number](x) for x in inputs[number].split(T, dim=1)], 1)

    in_threads(work)
    for number, right in enumerate(expected):
        torch.testing.assert_close(found[number], right)


def test_threads_on_one_layer_leave_a_whole_state():
    """Which call goes on from which is open; that each goes on from the whole of one is not."""
    layer, x, calls = make_layer(return_sequences=False), x_of(), 12
    free, state = make_free(layer), torch.zeros(B, U)
    possible = []
    for _ in range(calls):
        state = free(x, initial_state=state)
        possible.append(state)
    with torch.no_grad():
        in_threads(lambda number: [layer(x) for _ in range(calls // 4)])
    assert any(torch.allclose(layer.states[0], state, atol=1e-6) for state in possible)


class Model(nn.Module):
    """A stateful layer beside a true buffer, which is broadcast from rank 0."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count += dist.get_rank() + 1
        return self.layer(x)


def _run_rank(rank, make, known, store):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layer = make()
    torch.manual_seed(1 + rank)
    parts = x_of(B, 4 * T, I).split(T, dim=1)
    single = copy.deepcopy(layer)
    if known:
        # Known before wrapping: there is something to broadcast then.
        layer(parts[0])
        single(parts[0])
    model = DistributedDataParallel(Model(layer), broadcast_buffers=True)
    for part in parts[1:]:
        y = model(part)
        torch.testing.assert_close(y, single(part), msg=lambda m: f"rank {rank}: {m}")
        y.square().mean().backward()
    torch.testing.assert_close(layer.states, single.states)
    states = [torch.empty(B, U) for _ in range(2)]
    dist.all_gather(states, layer.states[0].detach())
    assert not torch.allclose(*states), "each rank has its own stream"
    # The buffer was broadcast before each call, from rank 0, which adds 1.
    assert model.module.count == (3 if rank == 0 else 4)
    dist.barrier()
    dist.destroy_process_group()
    # A thread of Gloo that still waits for the interpreter's lock would abort a process that finalizes; a failure above
    # has raised by now.
    os._exit(0)


def make_bidirectional():
    return Bidirectional(make_layer())


@pytest.mark.slow
@pytest.mark.parametrize("known", [False, True], ids=["unknown", "known"])
@pytest.mark.parametrize("make", [make_layer, make_bidirectional])
def test_each_rank_has_its_own_stream(make, known, tmp_path):
    torch.multiprocessing.spawn(_run_rank, (make, known, str(tmp_path / "store")), nprocs=2)
