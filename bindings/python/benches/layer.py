"""Times one MoE layer in PyTorch on a GPU, in the table of evenkeel's own benchmark.

That benchmark is `cargo bench -p evenkeel-exec --features cuda --bench ffn_cuda -- layer`.

    python bindings/python/benches/layer.py [--models mixtral-8x7b,qwen3-30b-a3b] [--tokens 512,4096,16384]

The layer has norm, router, top-k, experts, weighted sum and residual, in bf16 with random weights. The
experts run in up to three ways, as far as they are installed: a loop over the experts with `index_add_`,
grouped products (torch's `grouped_mm`, tokens sorted by expert), and vLLM's fused kernel in Triton.

Times come from CUDA events. Each is the median of several runs after a few runs for warm-up. "graph" is the
same work recorded as a CUDA graph. The loop cannot be recorded, since it reads sizes on the host. The script
needs a GPU and torch, and reports if one is missing.
"""

import argparse
import statistics
import sys

MODELS = {
    # hidden, inner, experts, experts per token: src/model.rs
    "mixtral-8x7b": (4096, 14336, 8, 2),
    "qwen3-30b-a3b": (2048, 768, 128, 8),
}
WARM, ROUNDS = 5, 30


def milliseconds(torch, work):
    times = []
    for _ in range(WARM + ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times[WARM:])


def recorded(torch, work):
    """Returns the same work as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


class Layer:
    def __init__(self, torch, hidden, inner, experts, top_k):
        self.torch, self.experts, self.top_k = torch, experts, top_k
        torch.manual_seed(1)

        def weights(*shape):
            return torch.randn(*shape, device="cuda", dtype=torch.bfloat16) / shape[-1] ** 0.5

        self.gate = weights(experts, hidden)
        self.first = weights(experts, 2 * inner, hidden)  # gate and up
        self.down = weights(experts, hidden, inner)
        self.norm = torch.ones(hidden, device="cuda", dtype=torch.bfloat16)

    def route(self, x):
        torch = self.torch
        y = x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
        y = y.to(torch.bfloat16) * self.norm
        weights, ids = torch.topk(torch.softmax((y @ self.gate.T).float(), -1), self.top_k)
        return y, (weights / weights.sum(-1, keepdim=True)).to(torch.bfloat16), ids

    def activate(self, both):
        gate, up = both.chunk(2, -1)
        return self.torch.nn.functional.silu(gate) * up

    def loop(self, x):
        y, weights, ids = self.route(x)
        out = self.torch.zeros_like(y)
        for expert in range(self.experts):
            token, choice = (ids == expert).nonzero(as_tuple=True)
            inside = self.activate(y[token] @ self.first[expert].T)
            out.index_add_(0, token, (inside @ self.down[expert].T) * weights[token, choice, None])
        return x + out

    def grouped(self, x):
        torch = self.torch
        y, weights, ids = self.route(x)
        order = ids.flatten().argsort(stable=True)
        token = order // self.top_k
        # `bincount` would synchronise with the host.
        counts = torch.zeros(self.experts, dtype=torch.int32, device="cuda")
        counts.index_add_(0, ids.flatten(), torch.ones(ids.numel(), dtype=torch.int32, device="cuda"))
        ends = torch.cumsum(counts, 0).to(torch.int32)
        inside = self.activate(self.grouped_mm(y[token], self.first.transpose(1, 2), offs=ends))
        result = self.grouped_mm(inside, self.down.transpose(1, 2), offs=ends)
        out = torch.zeros_like(y)
        return x + out.index_add_(0, token, result * weights.flatten()[order, None])

    def fused(self, x):
        y, weights, ids = self.route(x)
        return x + self.fused_experts(y, self.first, self.down, weights.float(), ids.int())

    def ways(self):
        yield "torch, loop", self.loop, False
        public = getattr(self.torch.nn.functional, "grouped_mm", None)
        self.grouped_mm = public or getattr(self.torch, "_grouped_mm", None)
        if self.grouped_mm:
            yield "torch, grouped", self.grouped, True
        try:
            from vllm.model_executor.layers.fused_moe import fused_experts

            self.fused_experts = fused_experts
            yield "vLLM, Triton", self.fused, True
        except Exception as error:  # any failure of the import
            print(f"vLLM's kernel is left out: {error}", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--tokens", default="512,4096,16384")
    arguments = parser.parse_args()
    try:
        import torch
    except ImportError:
        print("skipped: no torch")
        return
    if not torch.cuda.is_available():
        print("skipped: torch finds no GPU")
        return
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"{'layer of':<14} {'tokens':>6} {'by':>22} {'ms':>9} {'tokens/s':>12}")
    for name in arguments.models.split(","):
        layer = Layer(torch, *MODELS[name])
        for tokens in map(int, arguments.tokens.split(",")):
            x = torch.randn(tokens, MODELS[name][0], device="cuda", dtype=torch.float32)
            expected = None
            for what, way, can_record in layer.ways():

                def show(what, work):
                    ms = milliseconds(torch, work)
                    print(f"{name:<14} {tokens:>6} {what:>22} {ms:>9.3f} {tokens / ms * 1e3:>12.0f}", flush=True)

                try:
                    with torch.inference_mode():
                        out = way(x)
                        expected = out if expected is None else expected
                        off = ((out - expected).abs().amax() / expected.abs().amax()).item()
                        if off > 2e-2:
                            print(f"{what}: {off:.1e} off the loop", file=sys.stderr)
                        show(what, lambda: way(x))
                        if can_record:
                            show(f"{what}, graph", recorded(torch, lambda: way(x)))
                except Exception as error:  # a failing way leaves the others
                    print(f"{what}: {type(error).__name__}: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
