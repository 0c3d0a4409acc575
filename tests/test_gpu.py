"""On a GPU: the kernels that Triton writes, the allocator's own count, and what only runs there."""

from __future__ import annotations

import contextlib
import copy
import json
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from nets import NETS
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

import recut
from benchmarks.fuzzing import check
from benchmarks.outcomes import assert_same, take_steps
from recut.backend import watching
from recut.cli import main
from recut.machines import this_host
from recut.passes.measured import extra_bytes
from recut.probe import Probe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]

BUDGETS = (1.0, 0.5, 0.01)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    # A plan that a cache serves is reported by nobody.
    caches = torch._functorch.config.patch(enable_autograd_cache=False)
    with caches, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*floor")  # a budget of 0.01 asks for it
        warnings.filterwarnings("ignore", message=".*TensorFloat32")
        yield


@contextlib.contextmanager
def eager_numbers() -> Iterator[None]:
    """Have Inductor draw eager's random numbers."""
    with torch._inductor.config.patch(fallback_random=True):
        yield


def compiled(module: nn.Module, budget: float | str, **options: object) -> nn.Module:
    return torch.compile(
        module,
        backend=recut.ckpt_backend,
        fullgraph=True,
        dynamic=False,
        options={"memory_budget": budget, **options},
    )


def gradients(call: Callable[..., Tensor], module: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """Those of one step from one seed, with the loss in front."""
    module.zero_grad(set_to_none=True)
    torch.manual_seed(7)
    loss = call(*inputs)
    loss.backward()
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    return [loss.detach(), *(g.clone() for g in grads)]


def assert_near(got: list[Tensor], want: list[Tensor], most: float) -> None:
    """Hold the largest difference of each tensor against its largest number."""
    assert len(got) == len(want)
    for k, (a, b) in enumerate(zip(got, want, strict=True)):
        scale = max(b.abs().max().item(), 1e-30)
        assert (a - b).abs().max().item() <= most * scale, f"tensor {k} of {len(want)}"


@contextlib.contextmanager
def probed() -> Iterator[Probe]:
    """Measure by the allocator what the graphs hold that are compiled inside the block.

    In their second step: the first one is there for the libraries.
    """
    probe = Probe(1, endless=True)
    with watching(probe):
        yield probe


def peak_of(probe: Probe) -> int:
    (figures,) = probe.figures()
    assert figures.peak
    return figures.peak


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", NETS)
def test_a_net_trains_as_eager_does_within_its_budget(name, budget):
    def made():
        module, inputs = NETS[name].make()
        module = module.cuda()
        inputs = tuple(x.detach().cuda().requires_grad_(x.requires_grad) for x in inputs)
        return module, inputs

    module, inputs = made()
    with eager_numbers():
        # Of some draws Inductor's version advances a GPU's generator by less than eager's.
        like = torch.compile(module, dynamic=False) if name == "noise" else module
        want = take_steps(like, module, inputs, steps=2)
    module, inputs = made()
    with eager_numbers(), probed() as probe:
        assert_same(take_steps(compiled(module, budget), module, inputs, steps=2), want)
    (report,) = recut.reports()
    assert report.scheduled_peak <= report.budget
    assert peak_of(probe) <= report.budget


class Block(nn.Module):
    """Attention with dropout, and a gated MLP with dropout, in what precision is asked."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.qkv(self.norm(x)).view(batch, length, 3, self.heads, -1)
        q, k, v = (p.transpose(1, 2) for p in parts.unbind(2))
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, width))
        return x + F.dropout(self.down(F.gelu(self.up(x))), self.dropout)


class Net(nn.Module):
    def __init__(self, layers: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block(256, 4, dropout) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x.float().square().mean()


def net(dropout: float = 0.0, dtype: torch.dtype = torch.bfloat16) -> tuple[nn.Module, Tensor]:
    module = Net(dropout=dropout).cuda().to(dtype)
    return module, torch.randn(4, 512, 256, device="cuda", dtype=dtype)


@pytest.mark.parametrize("budget", BUDGETS)
def test_attention_with_dropout_draws_what_stock_draws(budget):
    module, x = net(dropout=0.2)
    want = gradients(torch.compile(module, fullgraph=True, dynamic=False), module, x)
    with probed() as probe:
        call = compiled(module, budget)
        got = gradients(call, module, x)
        gradients(call, module, x)
    # A mask drawn afresh would be off by as much as the gradient; bfloat16 rounds at 4e-3.
    assert_near(got, want, 0.06)
    (report,) = recut.reports()
    assert report.scheduled_peak <= report.budget
    assert peak_of(probe) <= report.budget


@pytest.mark.parametrize("budget", BUDGETS)
def test_autocast_and_a_gradient_scaler(budget):
    def losses(wrap: Callable[[nn.Module], Callable[..., Tensor]]) -> list[float]:
        module, x = net(dtype=torch.float32)
        call = wrap(module)
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
        scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
        found = []
        for _ in range(4):
            optimizer.zero_grad()
            with torch.autocast("cuda", torch.float16):
                loss = call(x)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            found.append(loss.item())
        return found

    want = losses(lambda m: m)
    assert want[-1] < want[0]
    assert losses(lambda m: compiled(m, budget)) == pytest.approx(want, rel=5e-3)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune-no-cudagraphs"])
def test_a_mode_trains_as_stock_does(mode, budget):
    def losses(**how: object) -> list[float]:
        torch._dynamo.reset()
        module, x = net(dtype=torch.float32)
        call = torch.compile(module, fullgraph=True, dynamic=False, mode=mode, **how)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        found = []
        for _ in range(5):
            optimizer.zero_grad()
            torch.compiler.cudagraph_mark_step_begin()
            loss = call(x)
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    want = losses()
    with contextlib.ExitStack() as stack:
        # A mode and options do not go together; the budget comes by the environment then.
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("RECUT_MEMORY_BUDGET", str(budget))
        got = losses(backend=recut.ckpt_backend)
    assert got == pytest.approx(want, rel=1e-3)
    assert want[-1] < want[0]
    (report,) = recut.reports()
    assert report.scheduled_peak <= report.budget


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_users_triton_kernel(budget):
    pytest.importorskip("triton")
    from gpu_kernels import doubled_sine

    class Mine(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return doubled_sine(x)

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return 2 * grad * torch.cos(x)

    class User(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))

        def forward(self, x):
            for layer in self.layers:
                x = Mine.apply(torch.tanh(layer(x)))
            return x.square().mean()

    module = User().cuda()
    x = torch.randn(1024, 64, device="cuda")
    want = gradients(module, module, x)
    assert_near(gradients(compiled(module, budget), module, x), want, 1e-4)


@pytest.mark.parametrize("budget", BUDGETS)
def test_flex_attention(budget):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, 256, 256, device="cuda")

    class Flex(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.qkv = nn.ModuleList(nn.Linear(128, 384) for _ in range(3))

        def forward(self, x):
            for layer in self.qkv:
                parts = layer(x).view(2, 256, 3, 2, 64).permute(2, 0, 3, 1, 4)
                y = flex_attention(*parts.unbind(0), block_mask=mask)
                x = x + torch.tanh(y.transpose(1, 2).reshape(2, 256, 128))
            return x.square().mean()

    module = Flex().cuda()
    x = torch.randn(2, 256, 128, device="cuda")
    want = gradients(torch.compile(module, fullgraph=True, dynamic=False), module, x)
    assert_near(gradients(compiled(module, budget), module, x), want, 1e-2)


def test_costs_are_measured_on_the_gpu():
    module, x = net()
    want = gradients(torch.compile(module, fullgraph=True, dynamic=False), module, x)
    state = torch.cuda.get_rng_state()
    got = gradients(compiled(module, 0.6, costs="measure"), module, x)
    assert_near(got, want, 0.06)
    assert torch.equal(torch.cuda.get_rng_state(), state)  # measuring draws no random numbers
    (report,) = recut.reports()
    assert report.bases["measured"] > 0


def test_a_plan_knows_what_a_librarys_call_takes_beside_its_results():
    module, x = net()
    with probed() as probe:
        call = compiled(module, 0.01)
        for _ in range(2):
            gradients(call, module, x)
    (report,) = recut.reports()
    assert 0.97 * report.peak <= peak_of(probe) <= report.peak


def test_what_a_librarys_call_allocates_beside_its_results_is_known():
    graph = torch.fx.Graph()
    q = graph.placeholder("q")
    with FakeTensorMode():
        q.meta["val"] = torch.empty(2, 4, 512, 64, device="cuda", dtype=torch.bfloat16)
        call = graph.call_function(
            torch.ops.aten._scaled_dot_product_flash_attention.default, (q, q, q, 0.1, True)
        )
        call.meta["val"] = call.target(*[q.meta["val"]] * 3, 0.1, True)
    before = torch.cuda.get_rng_state()
    assert 0 <= extra_bytes(call) < 2**20
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_a_budget_of_what_is_free():
    module, x = net()
    gradients(compiled(module, "auto"), module, x)
    (report,) = recut.reports()
    _, total = torch.cuda.mem_get_info()
    assert 0.2 * total < report.budget < total
    assert report.planner == "min-cut"


def test_sizes_as_symbols():
    module, _ = net(dtype=torch.float32)
    call = torch.compile(
        module, backend=recut.ckpt_backend, dynamic=True, options={"memory_budget": 0.5}
    )
    for batch in (4, 7, 2):
        x = torch.randn(batch, 512, 256, device="cuda")
        assert_near(gradients(call, module, x), gradients(module, module, x), 1e-2)
    assert len(recut.reports()) == 1
    report = recut.reports()[0]
    assert report.formula.at({}) == report.peak


def test_another_budget_in_bytes_on_the_gpu_is_refused_with_the_floor():
    module, x = net()
    with pytest.raises(recut.InfeasibleBudget) as caught:
        gradients(compiled(module, "64KiB"), module, x)
    floor = caught.value.floor
    torch._dynamo.reset()
    call = compiled(module, floor)
    gradients(call, module, x)
    assert recut.reports()[-1].scheduled_peak <= floor


@pytest.mark.long
def test_calibration_measures_the_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["calibrate", "--device", "cuda"]) == 0
    (path,) = tmp_path.rglob("*.json")
    machine = json.loads(path.read_text())["machine"]
    assert machine["name"] == this_host("cuda").product
    assert machine["flops"]["bfloat16"] > machine["flops"]["float32"]
    assert machine["link"] > 1e9


def test_the_doctor_measures_a_scripts_graphs_on_the_gpu(tmp_path, capsys):
    script = tmp_path / "train.py"
    script.write_text(
        "import torch, recut\n"
        "from torch import nn\n"
        "m = nn.Sequential(*[nn.Linear(512, 512), nn.GELU()] * 6).cuda()\n"
        "f = torch.compile(m, backend=recut.ckpt_backend, options={'memory_budget': 0.7})\n"
        "x = torch.randn(4096, 512, device='cuda')\n"
        "for _ in range(12):\n"
        "    f(x).square().mean().backward()\n"
        "    m.zero_grad()\n"
    )
    assert main(["doctor", str(script)]) == 0
    text = capsys.readouterr().out
    assert "peak" in text, text
    print(text)


@pytest.mark.parametrize("seed", range(24))
def test_a_drawn_program_op_by_op(seed):
    """The programs of ``test_fuzz.py``, with everything on the GPU."""
    check(seed, "cuda")


def test_two_models_share_nothing():
    """A plan of one module must not be another's, though shapes are equal."""
    first, x = net()
    second = copy.deepcopy(first)
    with torch.no_grad():
        for p in second.parameters():
            p.mul_(0.5)
    calls = [compiled(m, b) for m, b in ((first, 0.5), (second, 1.0))]
    for module, call in zip((first, second), calls, strict=True):
        want = gradients(torch.compile(module, fullgraph=True, dynamic=False), module, x)
        assert_near(gradients(call, module, x), want, 0.06)
