"""One rank of SGLang, reduced to the parts that a batch's ids pass through."""

import types

import numpy as np
import stacks

LAYERS, EXPERTS, RANKS, SLOTS = 3, 16, 8, 24


class Rank:
    """A rank of SGLang made from its own modules.

    Real modules: `runtime_context`, `eplb.expert_location`, `eplb.expert_location_dispatch`,
    `eplb.lplb_solver`, `plugins.hook_registry`. `layers/moe/topk.py` and `moe_ep_setup.py` import the whole
    stack, so only the required functions run, from their source. The test sets the values that a server
    publishes: sizes, options, groups.
    """

    def __init__(
        self, torch, placement, a2a="none", algorithm="dynamic", group=None, ranks=RANKS, rank=0, nodes=1,
        shape=(LAYERS, EXPERTS, SLOTS),
    ):  # fmt: skip
        self.torch, self.rank = torch, rank
        layers, experts, slots = shape
        context = stacks.load("sglang.srt.runtime_context")
        moe = types.SimpleNamespace(
            ep_dispatch_algorithm=algorithm,
            moe_a2a_backend=a2a,
            ep_num_redundant_experts=slots - experts,
            ep_join_mode=None,
            init_expert_location="trivial",
        )
        self.options = moe
        bags = {"exec": types.SimpleNamespace(moe=moe), "device": types.SimpleNamespace(device="cpu")}
        context.get_context()._config_bags = bags
        context.get_parallel()._overrides.update(
            ep_size=ranks, nnodes=nodes, elastic_ep_initial_size=None, moe_ep_group=group
        )
        stacks.stand_in("sglang.srt.elastic_ep.elastic_ep", elastic_expanded_world_enabled=lambda: False)
        shape = types.SimpleNamespace(num_layers=layers, num_logical_experts=experts, num_groups=None)
        self.shape = shape
        model = types.SimpleNamespace(get_model_config_for_expert_location=lambda _: shape)
        stacks.stand_in("sglang.srt.model_loader", get_model_architecture=lambda _: (model, "Model"))
        architectures = ["DeepseekV3ForCausalLM"]
        self.model_config = types.SimpleNamespace(hf_config=types.SimpleNamespace(architectures=architectures))
        self.location = stacks.load("sglang.srt.eplb.expert_location")
        self.dispatch = stacks.load("sglang.srt.eplb.expert_location_dispatch")
        solver = stacks.load("sglang.srt.eplb.lplb_solver")
        self.registry = stacks.load("sglang.srt.plugins.hook_registry").HookRegistry
        self.registry.reset()
        self.topk = stacks.take(
            "sglang.srt.layers.moe.topk",
            "resolve_routing_inputs",
            "_post_process_topk_ids",
            "_biased_grouped_topk_postprocess",
            "_mask_topk_ids_padded_region",
            torch=torch,
            ExpertLocationDispatchInfo=self.dispatch.ExpertLocationDispatchInfo,
            topk_ids_logical_to_physical=self.dispatch.topk_ids_logical_to_physical,
            has_forward_context=lambda: False,
            has_per_rank_fused_shared_slots=lambda slots: False,
            capture_routed_experts_if_allowed=lambda *_: None,
            _use_aiter=False,
            _is_cuda=True,
            _is_hip=False,
            _is_npu=False,
        )
        self.setup = stacks.take(
            "sglang.srt.model_executor.model_runner_components.moe_ep_setup",
            "init_lplb_solvers",
            assert_lplb_supported_model=solver.assert_lplb_supported_model,
            clear_global_lplb_solvers=solver.clear_global_lplb_solvers,
            get_global_expert_location_metadata=self.location.get_global_expert_location_metadata,
            set_global_lplb_solver=solver.set_global_lplb_solver,
            LPLBSolver=solver.LPLBSolver,
            logger=types.SimpleNamespace(info=lambda _: None),
        )
        self.solvers = solver
        self.location.set_global_expert_location_metadata(None, allow_overwrite=True)
        self.placement = placement

    def start(self):
        """Starts in the order of a server: plug-ins first, then placements, then all that depends on them."""
        import evenkeel

        evenkeel.sglang.register()
        self.registry.apply_hooks()
        self.place(self.placement)
        return self

    def place(self, placement):
        """Sets a placement [layers, slots], as at the start of a server or after EPLB."""
        metadata = self.location.ExpertLocationMetadata.init_by_mapping(
            self.model_config, self.torch.from_numpy(np.array(placement)), moe_ep_rank=self.rank
        )
        running = self.location.get_global_expert_location_metadata()
        if running is None:
            self.location.set_global_expert_location_metadata(metadata)
        else:
            running.update(metadata, list(range(self.shape.num_layers)))
        if self.options.ep_dispatch_algorithm == "lp":
            self.setup.init_lplb_solvers(model_config=self.model_config)

    def batch(self, layer, ids, rows=None, shared=0):
        """Passes ids [tokens, k] through the post-processing. Returns the ids for the all-to-all and those
        for the recorder.
        """
        rows, info = self.topk.resolve_routing_inputs(layer_id=layer, is_draft=False, num_token_non_padded=rows)
        config = types.SimpleNamespace(
            num_shared_topk_slots=shared, fused_shared_experts_scaling_factor=None, top_k=ids.shape[1]
        )
        out, _, recorded = self.topk._post_process_topk_ids(
            ids, self.torch.ones(ids.shape), config, self.torch.zeros(len(ids), self.shape.num_logical_experts), layer, rows, info
        )
        return out, recorded

    def idle(self, layer):
        """Acts as a rank without tokens, like `TopK.empty_topk_output`."""
        solver = self.solvers.get_global_lplb_solver(layer)
        if solver is not None:
            solver.solve(self.torch.empty((0, 2), dtype=self.torch.int32))
