"""A model of one step's time: the order in which configurations are compiled, and the rank of what no replay knows.

    step = launch + exchanges * exchange + load + max(feed, product) + gates

    feed      bytes of recurrent weights a program reads from shared memory, over the bandwidth of its multiprocessor
    product   the chain of matrix instructions along U: latency bound for small tiles, issue bound for large ones
    load      the state (forward) or the three gate gradients (backward) of the tile's rows, from the second-level cache
    exchange  one release and one acquire through the second-level cache
    gates     the pointwise work of the program's units

docs/tuning.md derives it. It looks at nothing that was compiled: where `replayed` has followed the machine code of a
candidate, that decides.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...tuning.configs import SINGLE, STEPS, Device, LaunchConfig, count_programs, count_waves
from ...tuning.tables import ITEM_SIZES, Key
from ..benchmark import floor


@dataclass(frozen=True)
class Machine:
    """The constants of a GPU generation.

    Attributes:
        clock: GHz. shared_rate: bytes per clock of a multiprocessor's shared memory.
        cache_latency: clocks of a second-level cache hit. cache_rate: its bytes per clock for one multiprocessor.
        cache_total: its bytes per clock for all of them together.
        matrix_latency: clocks of one dependent matrix instruction. matrix_rate: half-precision multiply-adds per clock
            and multiprocessor. scalar_rate: float32 multiply-adds per clock and multiprocessor.
        launch: us between two launches of a stream. poll: clocks added to an exchange by each program that polls.
    """

    clock: float
    cache_latency: float
    matrix_latency: float
    matrix_rate: float
    cache_total: float
    shared_rate: float = 128.0
    cache_rate: float = 64.0
    scalar_rate: float = 128.0
    launch: float = 6.0
    poll: float = 4.0


# Documented: 32 banks of 4 bytes per clock (CUDA C++ Programming Guide, "Shared Memory"); the highest clocks and the
# dense matrix rates of the vendors' data sheets. Estimates, to be replaced by bench measurements: every latency,
# cache_rate, cache_total (of the order of published read tests, 3 to 6 TB/s), poll and launch.
MACHINES = {
    "sm_80": Machine(clock=1.41, cache_latency=200, matrix_latency=33, matrix_rate=1024, cache_total=3000),
    "sm_86": Machine(clock=1.7, cache_latency=230, matrix_latency=33, matrix_rate=512, cache_total=1500),
    "sm_89": Machine(clock=2.5, cache_latency=270, matrix_latency=33, matrix_rate=512, cache_total=2000),
    "sm_90": Machine(clock=1.755, cache_latency=270, matrix_latency=33, matrix_rate=2048, cache_total=3200),
    "sm_100": Machine(clock=1.85, cache_latency=300, matrix_latency=33, matrix_rate=4096, cache_total=5000),
    "sm_120": Machine(clock=2.4, cache_latency=300, matrix_latency=33, matrix_rate=512, cache_total=3000),
    "gfx942": Machine(clock=2.1, cache_latency=500, matrix_latency=32, matrix_rate=2048, cache_total=8000),
}
EXCHANGE_PASSES = 3.0  # through the second-level cache, an estimate
ROWS, COLUMNS = 16, 8  # of the smallest matrix instruction
GATE_INSTRUCTIONS = 60  # per unit and row: three activations, loads, stores; counted in the forward's machine code
GATE_LATENCY = 200  # clocks: two exponentials and a reciprocal in a row
LOAD_BYTES, LOADS_IN_FLIGHT = 16, 8  # of one load, and per thread; the second an estimate
STREAM_AHEAD = 2  # chunks under way while one is multiplied, where weights are streamed


@dataclass(frozen=True)
class StepTime:
    """The parts of a step, in microseconds."""

    launch: float
    exchange: float
    load: float
    feed: float
    product: float
    gates: float

    @property
    def total(self) -> float:
        """The step, us."""
        return self.launch + self.exchange + self.load + max(self.feed, self.product) + self.gates


def model_step(config: LaunchConfig, key: Key, batch: int, device: Device, machine: Machine) -> StepTime:
    """Return the modelled parts of one step."""
    size = ITEM_SIZES[key.dtype]
    chunks = -(-key.units // config.block_k)
    depth = chunks * config.block_k
    programs = count_programs(config, key.units, batch)
    turns = count_turns(config, key, batch, device)
    meetings = 2 if "reset_before" in key.flags else 1
    feed, product = _multiply(config, key, depth, device, machine)
    states = (3 if key.kernel == "backward" else 1) + (3 if "dropout" in key.flags and key.kernel == "forward" else 0)
    # Bytes per clock of the second-level cache, for one of all that read at once.
    rate = min(machine.cache_rate, machine.cache_total / min(programs, device.processors))
    load = 0.0
    if config.streams:
        chunk = (3 * config.block_h + states * config.block_b) * config.block_k * size
        load = chunks * max(machine.cache_latency / STREAM_AHEAD, chunk / rate)
    elif config.schedule != SINGLE:
        # What is under way at once bounds the rate: bytes in flight over the latency.
        in_flight = LOADS_IN_FLIGHT * LOAD_BYTES * config.num_warps * device.warp_size
        rate = min(rate, in_flight / machine.cache_latency)
        load = machine.cache_latency * meetings + states * config.block_b * depth * size / rate
    gates = GATE_LATENCY + config.block_b * config.block_h * GATE_INSTRUCTIONS / machine.scalar_rate
    exchange = launch = 0.0
    if config.waits:
        crowd = machine.poll * -(-key.units // config.block_h)
        exchange = meetings * (EXCHANGE_PASSES * machine.cache_latency + crowd)
    if config.schedule == STEPS:
        launch = machine.launch * (meetings + (1 if key.kernel == "backward" else 0))
    micro = turns * 1e-3 / machine.clock
    return StepTime(launch, *(part * micro for part in (exchange, load, feed, product, gates)))


def count_turns(config: LaunchConfig, key: Key, batch: int, device: Device) -> int:
    """Return how often the multiprocessors run a step's program, one after another, for all programs of a batch."""
    if config.waits:
        return max(1, count_waves(config, key.units, batch, device))
    # Programs that share a multiprocessor share its units too, so a second one is counted as a second turn.
    return -(-count_programs(config, key.units, batch) // device.processors)


def step_floor(key: Key, batch: int, device: Device, machine: Machine) -> float:
    """Return a time, us, that no configuration of these kernels can be below: see `floor`."""
    half = 2 * machine.matrix_rate
    operations = {"float16": half, "bfloat16": half, "tf32": half / 2, "float32": 2 * machine.scalar_rate}
    kind = "tf32" if key.dtype == "float32" and not is_scalar(key) else key.dtype
    speeds = floor.Speeds(device.processors, machine.clock * 1e9, operations)
    least = floor.step_floor(key.units, batch, kind, False, speeds)
    assert least is not None, "every dtype has a number"
    return least


def is_scalar(key: Key) -> bool:
    """Return whether products run on the float32 units, not on the matrix units."""
    return key.dtype == "float32" and key.precision == "ieee"


def _multiply(config: LaunchConfig, key: Key, depth: int, device: Device, machine: Machine) -> tuple[float, float]:
    """Return the clocks of feeding the weights and of the products."""
    size = ITEM_SIZES[key.dtype]
    weights = 3 * config.block_h * depth * size
    if is_scalar(key):
        # Every multiply-add takes its weight from shared memory, shared by the rows a thread holds.
        threads = device.warp_size * config.num_warps
        work = 3 * config.block_b * config.block_h * depth
        outputs = max(1, config.block_b * config.block_h // threads)
        return work * size / outputs / machine.shared_rate, work / min(machine.scalar_rate, threads)
    # Triton lays all warps over the longer side of a product whose sums another product goes on with, over the rows of
    # a square; warps beyond that side repeat the work of others. Source: AccelerateMatmul.cpp, `warpsPerTileV2`.
    over_rows = config.block_b >= config.block_h
    rows, columns = (config.num_warps, 1) if over_rows else (1, config.num_warps)
    # Every warp reads the weights of its columns.
    readers = rows * max(1.0, columns * COLUMNS / config.block_h)
    step = 16 if size == 2 else 8
    products = {"tf32x3": 3, "bf16x3": 3}.get(key.precision, 1)
    tiles = 3 * -(-config.block_b // (ROWS * rows)) * -(-config.block_h // (COLUMNS * columns))
    rate = machine.matrix_rate / 4 * (1 if size == 2 else 0.5)
    issue = tiles * ROWS * COLUMNS * step / rate
    # At most four warps issue at once, one in each quarter of the multiprocessor.
    crowd = max(1.0, config.num_warps / 4)
    chain = depth / step * products * max(machine.matrix_latency, issue * crowd)
    return weights * readers / machine.shared_rate, chain
